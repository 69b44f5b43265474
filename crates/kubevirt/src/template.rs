//! Parameters of VM templates filled in (VEP 76, `virt-template/internal/template`, v0.2): `${NAME}` anywhere
//! in a text, `${{NAME}}` as a whole text for numbers and booleans; a hard-coded namespace is dropped.

use std::collections::BTreeMap;

use serde_json::Value;

/// The deepest nesting that is followed.
const DEPTH: usize = 64;

/// The longest value that is drawn.
const LONGEST: usize = 255;

/// Why a template cannot be filled in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// A value was given for a parameter that the template does not have.
    #[error("parameter {0} not found in template")]
    Unknown(String),
    /// A parameter that must have a value has none.
    #[error("parameter '{0}' is required and a value must be specified")]
    Required(String),
    /// The template uses a parameter that it does not define.
    #[error("found parameter '{0}' but it was not defined")]
    Undefined(String),
    /// There is no virtual machine in it.
    #[error("virtualMachine is required and cannot be empty")]
    Empty,
    /// A value cannot be drawn from the pattern.
    #[error("the pattern '{0}' cannot be drawn from")]
    Pattern(String),
    /// It is nested too deep.
    #[error("it is nested more than {DEPTH} deep")]
    Deep,
}

/// A template with its parameters filled in: the VM, and the message to its maker.
pub type Filled = (Value, Option<String>);

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Fills a `VirtualMachineTemplate` in. `random` gives a number below its argument; it is asked for
/// parameters that are generated.
///
/// # Errors
/// What is wrong with the template or with the values.
///
/// ```
/// use std::collections::BTreeMap;
/// use kubevirt::template::fill_in;
/// let template = serde_json::json!({"spec": {"parameters": [{"name": "NAME"}],
///     "virtualMachine": {"metadata": {"name": "${NAME}-vm"}}}});
/// let values = BTreeMap::from([("NAME".to_owned(), "web".to_owned())]);
/// let (vm, _) = fill_in(&template, &values, &mut |_| 0).unwrap();
/// assert_eq!(vm["metadata"]["name"], "web-vm");
/// ```
pub fn fill_in(
    template: &Value,
    given: &BTreeMap<String, String>,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<Filled, TemplateError> {
    let parameters = template.pointer("/spec/parameters").and_then(Value::as_array);
    let values = values(parameters.map_or(&[], Vec::as_slice), given, random)?;
    let vm = template.pointer("/spec/virtualMachine").filter(|vm| vm.is_object());
    let mut vm = vm.cloned().ok_or(TemplateError::Empty)?;
    if let Some(metadata) = vm.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata.get("namespace").and_then(Value::as_str).is_some_and(|name| !name.contains("${"))
    {
        metadata.remove("namespace");
    }
    substitute(&mut vm, &values, 0)?;
    vm["apiVersion"] = "kubevirt.io/v1".into();
    vm["kind"] = "VirtualMachine".into();
    let message = template.pointer("/spec/message").and_then(Value::as_str).filter(|text| !text.is_empty());
    let message = message.map(|message| replace(message, &values).map(into_text)).transpose()?;
    Ok((vm, message))
}

fn into_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn values(
    parameters: &[Value],
    given: &BTreeMap<String, String>,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<BTreeMap<String, String>, TemplateError> {
    let known = |name: &str| parameters.iter().any(|one| text(one, "name") == Some(name));
    if let Some(unknown) = given.keys().find(|name| !known(name)) {
        return Err(TemplateError::Unknown(unknown.clone()));
    }
    let mut values = BTreeMap::new();
    for parameter in parameters {
        let name = text(parameter, "name").unwrap_or_default();
        let mut value = match given.get(name) {
            Some(value) => value.clone(),
            None => text(parameter, "value").unwrap_or_default().to_owned(),
        };
        if value.is_empty() && text(parameter, "generate").is_some() {
            value = draw(text(parameter, "from").unwrap_or_default(), random)?;
        }
        if value.is_empty() && parameter.get("required") == Some(&Value::Bool(true)) {
            return Err(TemplateError::Required(name.to_owned()));
        }
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

fn substitute(
    value: &mut Value,
    values: &BTreeMap<String, String>,
    depth: usize,
) -> Result<(), TemplateError> {
    if depth > DEPTH {
        return Err(TemplateError::Deep);
    }
    match value {
        Value::String(text) => *value = replace(text, values)?,
        Value::Array(items) => {
            for item in items {
                substitute(item, values, depth + 1)?;
            }
        }
        Value::Object(map) => {
            for (key, mut item) in std::mem::take(map) {
                substitute(&mut item, values, depth + 1)?;
                map.insert(into_text(replace(&key, values)?), item);
            }
        }
        _ => {}
    }
    Ok(())
}

fn replace(text: &str, values: &BTreeMap<String, String>) -> Result<Value, TemplateError> {
    let word = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let value = |name: &str| values.get(name).ok_or_else(|| TemplateError::Undefined(name.to_owned()));
    if let Some(name) = text.strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}")).filter(|n| word(n))
    {
        let value = value(name)?;
        return Ok(serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone())));
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some(start) = rest.find("${") {
        let (before, after) = rest.split_at(start);
        out.push_str(before);
        let name = after.get(2..).and_then(|inner| inner.split_once('}')).map(|(name, _)| name);
        if let Some(name) = name.filter(|name| word(name)) {
            out.push_str(value(name)?);
            rest = after.get(name.len() + 3..).unwrap_or_default();
        } else {
            out.push_str("${");
            rest = after.get(2..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    Ok(Value::String(out))
}

/// Draws a text from a pattern: characters, and `[a-z0-9]{8}` with the classes `\w`, `\d`, `\a` and `\A`
/// (`generator/expressionvalue.go`).
fn draw(pattern: &str, random: &mut dyn FnMut(usize) -> usize) -> Result<String, TemplateError> {
    let bad = || TemplateError::Pattern(pattern.to_owned());
    if pattern.is_empty() {
        return Err(bad());
    }
    let (mut out, mut rest) = (String::new(), pattern);
    while let Some(start) = rest.find('[') {
        let (before, after) = rest.split_at(start);
        out.push_str(before);
        let (class, tail) = after.get(1..).and_then(|inner| inner.split_once(']')).ok_or_else(bad)?;
        let (length, tail) = match tail.strip_prefix('{') {
            Some(inner) => {
                let (length, tail) = inner.split_once('}').ok_or_else(bad)?;
                (length.parse::<usize>().map_err(|_| bad())?, tail)
            }
            None => (1, tail),
        };
        let alphabet = alphabet(class).filter(|all| !all.is_empty()).ok_or_else(bad)?;
        if length > LONGEST || out.len() + length > LONGEST {
            return Err(bad());
        }
        for _ in 0..length {
            out.extend(alphabet.get(random(alphabet.len())));
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn alphabet(class: &str) -> Option<Vec<char>> {
    let all = |text: &str| text.chars().collect::<Vec<char>>();
    let letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    match class {
        "\\w" => return Some(all(&format!("{letters}0123456789_"))),
        "\\d" => return Some(all("0123456789")),
        "\\a" => return Some(all(&format!("{letters}0123456789"))),
        "\\A" => return Some(all("~!@#$%^&*()-_+={}[]\\|<,>.?/\"';:`")),
        _ => {}
    }
    let characters: Vec<char> = class.chars().collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(first) = characters.get(at) {
        if let (Some('-'), Some(last)) = (characters.get(at + 1), characters.get(at + 2)) {
            if last < first || !first.is_ascii() || !last.is_ascii() {
                return None;
            }
            found.extend(*first..=*last);
            at += 3;
        } else {
            found.push(*first);
            at += 1;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template() -> Value {
        json!({"metadata": {"name": "fedora"}, "spec": {"message": "log in to ${NAME}", "parameters": [
                {"name": "NAME", "required": true}, {"name": "CORES", "value": "2"},
                {"name": "SUFFIX", "generate": "expression", "from": "v[a-c]{3}"}],
            "virtualMachine": {"metadata": {"name": "${NAME}-${SUFFIX}", "namespace": "elsewhere"},
                "spec": {"template": {"spec": {"domain": {"cpu": {"cores": "${{CORES}}"}}, "x": "a${{CORES}}b$"}}}}}})
    }

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn parameters_are_filled_in_as_texts_and_as_numbers() {
        let (vm, message) = fill_in(&template(), &given(&[("NAME", "web")]), &mut |_| 1).unwrap();
        assert_eq!(vm["metadata"], json!({"name": "web-vbbb"}), "and the namespace is the caller's");
        assert_eq!(vm["spec"]["template"]["spec"]["domain"]["cpu"]["cores"], 2);
        // `${{…}}` counts only as a whole text
        assert_eq!(vm["spec"]["template"]["spec"]["x"], "a${{CORES}}b$");
        assert_eq!((&vm["kind"], message.as_deref()), (&json!("VirtualMachine"), Some("log in to web")));
    }

    #[test]
    fn what_is_missing_or_unknown_is_said() {
        let mut broken = template();
        broken["spec"]["virtualMachine"]["spec"]["y"] = "${NOBODY}".into();
        let name = |name: &str| name.to_owned();
        for (template, pairs, wrong) in [
            (template(), &[][..], TemplateError::Required(name("NAME"))),
            (template(), &[("NAME", "a"), ("SIZE", "1")], TemplateError::Unknown(name("SIZE"))),
            (broken, &[("NAME", "a")], TemplateError::Undefined(name("NOBODY"))),
            (json!({}), &[], TemplateError::Empty),
        ] {
            assert_eq!(fill_in(&template, &given(pairs), &mut |_| 0), Err(wrong));
        }
    }

    #[test]
    fn patterns_are_drawn_from() {
        let mut next = 0;
        let mut random = |below: usize| {
            next += 7;
            next % below
        };
        for (pattern, length) in [("[a-z0-9]{8}", Some(8)), ("x[\\d]{2}y", Some(4)), ("plain", Some(5))] {
            assert_eq!(draw(pattern, &mut random).ok().map(|text| text.len()), length, "{pattern}");
        }
        for pattern in ["", "[z-a]{2}", "[a-z", "[a-z]{", "[a-z]{x}", "[a]{9999999}", "[]"] {
            assert!(draw(pattern, &mut random).is_err(), "{pattern}");
        }
    }
}
