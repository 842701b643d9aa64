//! How deep the arrays and objects of JSON text are nested. Pure; imports nothing of this
//! crate.

/// Deepest nesting that is forwarded: `serde_json`'s own recursion limit, and a
/// depth that every client's JSON parser is known to survive.
pub const MAX_NESTING: usize = 128;

/// Whether valid JSON text is nested deeper than [`MAX_NESTING`].
pub(super) fn is_too_deep(json: &str) -> bool {
    // Text with few openings cannot be nested deep, and counting them takes a tenth of
    // the time.
    openings(json) > MAX_NESTING && nesting(json) > MAX_NESTING
}

/// An upper bound on the arrays and objects that JSON text holds: brackets within strings
/// count as well.
fn openings(json: &str) -> usize {
    let is_opening = |byte: &u8| matches!(byte, b'{' | b'[');
    json.as_bytes()
        .iter()
        .filter(|byte| is_opening(byte))
        .count()
}

/// The deepest nesting of arrays and objects in valid JSON text.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth -= 1,
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The nesting of a tree, counted recursively.
    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(|number| json!(number)),
            "[\\[{}\"\\\\\\]a]{0,6}".prop_map(|text| json!(text)),
        ];
        leaf.prop_recursive(8, 40, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map("[\\[{\"\\\\a]{0,3}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_nesting_is_that_of_the_tree(value in any_json()) {
            let text = value.to_string();
            prop_assert_eq!(nesting(&text), depth(&value));
            prop_assert!(openings(&text) >= nesting(&text));
        }
    }

    #[test]
    fn the_limit_is_the_last_depth_that_passes() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(!is_too_deep(&nested(MAX_NESTING)));
        assert!(is_too_deep(&nested(MAX_NESTING + 1)));
        assert!(!is_too_deep(&format!("[\"{}\"]", "[".repeat(1_000))));
    }
}
