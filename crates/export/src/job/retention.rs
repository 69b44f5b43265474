//! Which runs may go.

use std::collections::BTreeSet;

/// A run that is at the destination and whole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Its id; later runs have greater ones.
    pub id: String,
    /// The run that it builds on.
    pub base: Option<String>,
}

/// The runs to remove so that the newest `keep` stay, with everything that they build on.
pub fn to_remove(runs: &[Kept], keep: usize) -> Vec<String> {
    let mut newest: Vec<&Kept> = runs.iter().collect();
    newest.sort_by(|a, b| b.id.cmp(&a.id));
    let mut needed = BTreeSet::new();
    let mut waiting: Vec<&str> = newest.iter().take(keep).map(|run| run.id.as_str()).collect();
    while let Some(id) = waiting.pop() {
        if needed.insert(id)
            && let Some(base) = runs.iter().find(|run| run.id == id).and_then(|run| run.base.as_deref())
        {
            waiting.push(base);
        }
    }
    newest.iter().filter(|run| !needed.contains(run.id.as_str())).map(|run| run.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kept_run_builds_on_stays_too() {
        let run =
            |id: &str, base: &str| Kept { id: id.into(), base: (!base.is_empty()).then(|| base.into()) };
        let runs = [run("1", ""), run("2", "1"), run("3", ""), run("4", "3"), run("5", "4")];
        assert_eq!(to_remove(&runs, 1), ["2", "1"]);
        assert_eq!(to_remove(&runs, 3), ["2", "1"]);
        assert_eq!(to_remove(&runs, 4), Vec::<String>::new());
        assert_eq!(to_remove(&[run("1", ""), run("2", "")], 1), ["1"]);
        assert_eq!(to_remove(&[run("1", "1")], 1), Vec::<String>::new(), "a circle ends");
    }
}
