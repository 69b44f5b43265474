//! `qemu-arguments`: arguments for QEMU that KubeVirt has no field for, of those that the administrator
//! allows (kubevirt#1919, #5619). Whoever may write them can give the guest what KubeVirt would not, so
//! nothing is allowed unless it is listed.

use hook::arguments::{Arguments, MAX_QEMU_ARGS, is_qemu_arg};

use crate::context::{Context, Plan};
use crate::document::Addition;
use crate::image::is_allowed;
use crate::sidecar::{self, entry, way};
use crate::text::candidates;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the value is not a JSON list of texts ({0}); write [\"-fw_cfg\", \"name=opt/x,string=1\"]")]
    Json(#[from] serde_json::Error),
    #[error("between 1 and {MAX_QEMU_ARGS} arguments can be asked for")]
    Count,
    #[error("`{0}` cannot be an argument: it is empty, too long or has control characters")]
    Argument(String),
    #[error("the arguments begin with `{0}`, which is no option; options begin with `-`")]
    NoOption(String),
    #[error(
        "`{option}` is not allowed; allowed (features.qemuArguments.allowed): {allowed}; ask the administrator"
    )]
    Refused { option: String, allowed: String },
    #[error(transparent)]
    Sidecar(#[from] sidecar::Error),
}

/// Decides which hook to add.
pub(crate) fn plan(context: &Context<'_>) -> Result<Plan, Error> {
    let text = context.wish.value.trim();
    let arguments: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text)?
    } else {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    };
    if !(1..=MAX_QEMU_ARGS).contains(&arguments.len()) {
        return Err(Error::Count);
    }
    if let Some(wrong) = arguments.iter().find(|argument| !is_qemu_arg(argument)) {
        return Err(Error::Argument(wrong.chars().take(64).collect()));
    }
    allowed(&arguments, &context.config.qemu_arguments.allowed)?;
    let mut plan = Plan { applied: text.to_owned(), ..Plan::default() };
    let site = way(context, &mut plan)?;
    let arguments = Arguments { qemu_args: arguments, ..Arguments::default() };
    let value = entry(context, site, &arguments, None)?;
    plan.additions.push(Addition { site, value });
    Ok(plan)
}

/// Whether each option, with the values behind it, is in a list.
pub(crate) fn allowed(arguments: &[String], list: &[String]) -> Result<(), Error> {
    let mut options: Vec<String> = Vec::new();
    for argument in arguments {
        match options.last_mut() {
            _ if argument.starts_with('-') => options.push(argument.clone()),
            Some(option) => {
                option.push(' ');
                option.push_str(argument);
            }
            None => return Err(Error::NoOption(argument.chars().take(64).collect())),
        }
    }
    match options.into_iter().find(|option| !is_allowed(option, list)) {
        Some(option) => {
            Err(Error::Refused { option: option.chars().take(128).collect(), allowed: candidates(list) })
        }
        None => Ok(()),
    }
}
