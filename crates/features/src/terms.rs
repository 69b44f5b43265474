//! Node selector terms with alternatives: `(a OR b) AND (x OR y)`.
//!
//! A node meets a selector when it meets one of its terms, and a term when it meets all of its
//! expressions. So "one of these alternatives, and whatever was required before" is a product:
//!
//! ```text
//!  [a, b] × {x | y}  =  [a∧x, a∧y, b∧x, b∧y]        [] × {x | y}  =  [x, y]
//! ```

use serde_json::{Map, Value};

const EXPRESSIONS: &str = "matchExpressions";

/// Each term with each alternative. A term without any requirement matches no node
/// (`k8s.io/component-helpers` nodeaffinity, v1.36) and stays as it is, or it would begin to match.
pub(crate) fn product(terms: &[Value], alternatives: &[Value]) -> Vec<Value> {
    if terms.is_empty() {
        return alternatives
            .iter()
            .map(|alternative| with(&Value::Object(Map::new()), alternative))
            .collect();
    }
    terms
        .iter()
        .flat_map(|term| {
            if is_blank(term) {
                return vec![term.clone()];
            }
            alternatives.iter().map(|alternative| with(term, alternative)).collect()
        })
        .collect()
}

/// The terms as they were before [`product`]. Terms that were changed or added since keep what
/// was changed, and lose only the alternatives.
pub(crate) fn strip(terms: &[Value], alternatives: &[Value]) -> Vec<Value> {
    let mut stripped: Vec<Value> = Vec::with_capacity(terms.len());
    for term in terms {
        let last = term.get(EXPRESSIONS).and_then(Value::as_array).and_then(|expressions| expressions.last());
        let Some(index) = alternatives.iter().position(|alternative| last == Some(alternative)) else {
            stripped.push(term.clone());
            continue;
        };
        let original = without_last(term);
        // the first alternative stands for the original term, the others are its copies
        if !is_blank(&original) && (index == 0 || !stripped.contains(&original)) {
            stripped.push(original);
        }
    }
    stripped
}

/// Whether the alternatives are in force in the terms.
pub(crate) fn holds(terms: &[Value], alternatives: &[Value]) -> bool {
    !terms.is_empty() && product(&strip(terms, alternatives), alternatives) == terms
}

fn with(term: &Value, alternative: &Value) -> Value {
    let mut term = term.as_object().cloned().unwrap_or_default();
    match term.get_mut(EXPRESSIONS) {
        Some(Value::Array(expressions)) => expressions.push(alternative.clone()),
        _ => drop(term.insert(EXPRESSIONS.into(), Value::Array(vec![alternative.clone()]))),
    }
    Value::Object(term)
}

fn without_last(term: &Value) -> Value {
    let mut term = term.as_object().cloned().unwrap_or_default();
    if let Some(Value::Array(expressions)) = term.get_mut(EXPRESSIONS) {
        expressions.pop();
        if expressions.is_empty() {
            term.remove(EXPRESSIONS);
        }
    }
    Value::Object(term)
}

fn is_blank(term: &Value) -> bool {
    let empty = |field: &str| term.get(field).and_then(Value::as_array).is_none_or(Vec::is_empty);
    empty(EXPRESSIONS) && empty("matchFields")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn expression(key: &str) -> Value {
        json!({"key": key, "operator": "Exists"})
    }

    fn term(keys: &[&str]) -> Value {
        json!({"matchExpressions": keys.iter().map(|key| expression(key)).collect::<Vec<_>>()})
    }

    #[test]
    fn the_product_is_conjunction_with_alternatives() {
        let alternatives = [expression("x"), expression("y")];
        assert_eq!(product(&[], &alternatives), [term(&["x"]), term(&["y"])]);
        assert_eq!(
            product(&[term(&["a"]), term(&["b"])], &alternatives),
            [term(&["a", "x"]), term(&["a", "y"]), term(&["b", "x"]), term(&["b", "y"])]
        );
        assert_eq!(product(&[json!({})], &alternatives), [json!({})]);
    }

    #[test]
    fn strip_undoes_the_product_and_keeps_what_others_wrote() {
        let alternatives = [expression("x"), expression("y")];
        let fields = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]});
        for terms in [
            vec![],
            vec![term(&["a"])],
            vec![term(&["a"]), term(&["a"]), json!({}), fields],
            vec![term(&["x"]), term(&["b", "y"])],
        ] {
            let written = product(&terms, &alternatives);
            assert_eq!(strip(&written, &alternatives), terms);
            assert!(written.is_empty() || holds(&written, &alternatives));
        }
        let edited = [term(&["a", "new", "x"]), term(&["a", "y"]), term(&["c"])];
        assert_eq!(strip(&edited, &alternatives), [term(&["a", "new"]), term(&["a"]), term(&["c"])]);
        assert!(!holds(&edited, &alternatives));
    }
}
