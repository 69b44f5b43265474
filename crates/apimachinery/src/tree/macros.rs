//! `json!`, as `serde_json` has it, and what visitors that make trees have in common.

/// A tree in the notation of JSON. Keys are literals, names, or expressions in parentheses; values are
/// JSON or any expression of a kind that has [`ToValue`](crate::tree::ToValue).
///
/// ```
/// use apimachinery::tree::json;
///
/// let (key, replicas) = ("replicas", 3);
/// assert_eq!(json!({"spec": {key: replicas, "paused": null}, "list": [1, [2], {}]}).to_string(),
///     r#"{"list":[1,[2],{}],"spec":{"paused":null,"replicas":3}}"#);
/// ```
#[macro_export]
macro_rules! json {
    (null) => { $crate::tree::Value::Null };
    ([]) => { $crate::tree::Value::Array($crate::tree::List::new()) };
    ([ $($values:tt)+ ]) => {{
        let mut list = $crate::tree::List::new();
        $crate::json_values!(list $($values)+);
        $crate::tree::Value::Array(list)
    }};
    ({}) => { $crate::tree::Value::Object($crate::tree::Map::new()) };
    ({ $($entries:tt)+ }) => {{
        let mut map = $crate::tree::Map::new();
        $crate::json_entries!(map $($entries)+);
        $crate::tree::Value::Object(map)
    }};
    ($value:expr) => { $crate::tree::ToValue::to_value(&$value) };
}

/// The values of a list in [`json!`](crate::json).
#[doc(hidden)]
#[macro_export]
macro_rules! json_values {
    ($list:ident) => {};
    ($list:ident null $(, $($rest:tt)*)?) => {
        $list.push($crate::tree::Value::Null);
        $crate::json_values!($list $($($rest)*)?);
    };
    ($list:ident [ $($inner:tt)* ] $(, $($rest:tt)*)?) => {
        $list.push($crate::json!([ $($inner)* ]));
        $crate::json_values!($list $($($rest)*)?);
    };
    ($list:ident { $($inner:tt)* } $(, $($rest:tt)*)?) => {
        $list.push($crate::json!({ $($inner)* }));
        $crate::json_values!($list $($($rest)*)?);
    };
    ($list:ident $value:expr $(, $($rest:tt)*)?) => {
        $list.push($crate::json!($value));
        $crate::json_values!($list $($($rest)*)?);
    };
}

/// The entries of a map in [`json!`](crate::json).
#[doc(hidden)]
#[macro_export]
macro_rules! json_entries {
    ($map:ident) => {};
    ($map:ident $key:tt : null $(, $($rest:tt)*)?) => {
        $map.set(&$key, $crate::tree::Value::Null);
        $crate::json_entries!($map $($($rest)*)?);
    };
    ($map:ident $key:tt : [ $($inner:tt)* ] $(, $($rest:tt)*)?) => {
        $map.set(&$key, $crate::json!([ $($inner)* ]));
        $crate::json_entries!($map $($($rest)*)?);
    };
    ($map:ident $key:tt : { $($inner:tt)* } $(, $($rest:tt)*)?) => {
        $map.set(&$key, $crate::json!({ $($inner)* }));
        $crate::json_entries!($map $($($rest)*)?);
    };
    ($map:ident $key:tt : $value:expr $(, $($rest:tt)*)?) => {
        $map.set(&$key, $crate::json!($value));
        $crate::json_entries!($map $($($rest)*)?);
    };
}

/// The methods of a visitor (`serde::de::Visitor<Value = Value>`) for what has no parts, so that one that reads maps or
/// lists in a way of its own says no more than that.
#[macro_export]
macro_rules! visit_leaves {
    () => {
        fn visit_bool<E>(self, truth: bool) -> Result<$crate::tree::Value, E> {
            Ok(truth.into())
        }

        fn visit_i64<E>(self, number: i64) -> Result<$crate::tree::Value, E> {
            Ok(number.into())
        }

        fn visit_u64<E>(self, number: u64) -> Result<$crate::tree::Value, E> {
            Ok(number.into())
        }

        fn visit_f64<E>(self, number: f64) -> Result<$crate::tree::Value, E> {
            Ok(number.into())
        }

        fn visit_str<E>(self, text: &str) -> Result<$crate::tree::Value, E> {
            Ok(text.into())
        }

        fn visit_unit<E>(self) -> Result<$crate::tree::Value, E> {
            Ok($crate::tree::Value::Null)
        }
    };
}
