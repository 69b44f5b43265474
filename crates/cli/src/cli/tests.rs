//! What holds for every verb.

use std::path::Path;

use clap::{Command, CommandFactory};

use super::Cli;

/// Visits everything that can be run, with its words.
fn leaves(command: &Command, words: &str, visit: &mut dyn FnMut(&Command, &str)) {
    // `export` and `devices` do something by themselves as well
    if !command.has_subcommands() || ["export", "devices"].contains(&words) {
        visit(command, words);
    }
    for one in command.get_subcommands() {
        leaves(one, format!("{words} {}", one.get_name()).trim_start(), visit);
    }
}

fn has_flag(command: &Command, name: &str) -> bool {
    let named = |one: &clap::Arg| {
        one.get_long() == Some(name) || one.get_all_aliases().unwrap_or_default().contains(&name)
    };
    command.get_arguments().any(named)
}

#[test]
fn arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_shows_examples() {
    leaves(&Cli::command(), "", &mut |command, words| {
        let trivial = command.get_arguments().all(|one| one.is_global_set() || one.get_id() == "help");
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(trivial || help.contains("Examples:\n  virt-steward "), "{words} has no examples");
    });
}

#[test]
fn prose_of_help_breaks_where_the_terminal_ends() {
    let text = "Examples:\n  a\n  b\n\nOne two\nthree.\n\nExit status: 0 good,\n1 bad.";
    assert_eq!(super::flow(text), "Examples:\n  a\n  b\n\nOne two three.\n\nExit status: 0 good, 1 bad.");
}

/// What writes to no cluster, or works for one.
const ELSEWHERE: [&str; 10] =
    ["admit", "agent", "bench", "completion", "image", "operator", "policy", "sandbox", "serve", "version"];

/// What looks at a cluster, or leads into a guest. `devices permit` prints the change, unless it is told to make it.
const READS: [&str; 20] = [
    "capabilities",
    "console",
    "describe",
    "devices",
    "doctor resize",
    "filesystems",
    "get",
    "list",
    "logs",
    "os",
    "permit",
    "port-forward",
    "process",
    "resize-status",
    "screenshot",
    "status",
    "top",
    "users",
    "vnc",
    "wait",
];

#[test]
fn every_verb_that_writes_can_be_tried_first() {
    leaves(&Cli::command(), "", &mut |command, words| {
        let first = words.split(' ').next().unwrap_or_default();
        let reads =
            ELSEWHERE.contains(&first) || READS.contains(&command.get_name()) || READS.contains(&words);
        assert_ne!(reads, has_flag(command, "dry-run"), "{words}");
    });
}

/// The command lines of a text: between backquotes, and at the beginning of a line.
fn lines_of(text: &str) -> Vec<String> {
    // texts of programs and of shells go on behind a backslash
    let joined: String = text
        .split("\\\n")
        .enumerate()
        .map(|(at, part)| if at > 0 { part.trim_start() } else { part })
        .collect();
    let quoted = joined.split('`').skip(1).filter(|part| !part.contains('\n')).map(str::to_owned);
    let lines = joined.lines().map(|line| line.trim_start().trim_start_matches("$ ").to_owned());
    // a line of prose may begin with the name as well
    let root = Cli::command();
    let is_verb = |line: &String| {
        let verb = line.strip_prefix("virt-steward ").and_then(|rest| rest.split(' ').next());
        verb.is_some_and(|verb| root.find_subcommand(verb).is_some())
    };
    let all = quoted
        .chain(lines.filter(is_verb))
        .filter_map(|line| line.strip_prefix("virt-steward ").map(str::to_owned));
    all.collect()
}

/// What is wrong with a command line: a verb or a flag that there is not.
fn unknown(line: &str) -> Option<String> {
    let root = Cli::command();
    let mut command = &root;
    let end = ["|", ">", "<", "&&", "#", ";", "--"];
    let mut words = line.split_whitespace().take_while(|word| !end.contains(word));
    while let Some(word) = words.next() {
        let word = word.trim_matches(['"', '\'', ',', '.', ')', '(', '[', ']']);
        if let Some(flag) = word.strip_prefix("--") {
            let name = flag.split('=').next().unwrap_or_default();
            if !has_flag(command, name) && !["help", "version"].contains(&name) {
                return Some(format!("`{}` has no --{name}", command.get_name()));
            }
            let takes = |one: &clap::Arg| one.get_long() == Some(name) && one.get_action().takes_values();
            if !flag.contains('=') && command.get_arguments().any(takes) {
                words.next();
            }
        } else if word.starts_with('-') {
            words.next();
        } else if command.has_subcommands() {
            // what stands for something else is filled in later
            if !word.bytes().all(|byte| byte.is_ascii_lowercase() || b"-|".contains(&byte)) {
                return None;
            }
            let mut found = word.split('|').map(|verb| command.find_subcommand(verb));
            match found.next().flatten() {
                Some(first) if found.all(|one| one.is_some()) => command = first,
                // a VM to export
                _ if command.get_name() == "export" => return None,
                _ => return Some(format!("`{}` has no verb `{word}`", command.get_name())),
            }
        }
    }
    None
}

/// Texts that people read: sources with their messages, documents, charts.
fn texts(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !["target", ".git", "tests", "fuzz", "vendor"].contains(&name.as_str()) {
            texts(&path, found);
        } else if [".rs", ".md", ".yaml", ".txt"].iter().any(|end| name.ends_with(end))
            && name != "CHANGELOG.md"
        {
            found.push(path);
        }
    }
}

#[test]
fn every_command_that_is_named_somewhere_is_there() {
    let mut files = Vec::new();
    texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), &mut files);
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in files {
        for line in lines_of(&std::fs::read_to_string(&file).unwrap()) {
            seen += 1;
            wrong.extend(
                unknown(&line).map(|what| format!("{}: `virt-steward {line}`: {what}", file.display())),
            );
        }
    }
    assert!(seen > 300, "{seen} command lines were looked at");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
