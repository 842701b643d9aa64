//! The fixtures of `tests/fixtures`, for unit tests: updates of every generation, and what
//! becomes of each.

use std::{fs, path::Path};

use serde_json::Value;

/// Calls `check` with each fixture and its name, in no particular order. Returns how many
/// there are.
pub(super) fn each(mut check: impl FnMut(&str, &Value)) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let generation: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for fixture in generation["updates"].as_array().unwrap() {
            check(
                &format!("{} of {}", fixture["name"], path.display()),
                fixture,
            );
            count += 1;
        }
    }
    count
}
