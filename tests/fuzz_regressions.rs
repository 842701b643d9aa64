//! Inputs that fuzzing has found, and examples: every test run checks them. See `fuzz/README.md`.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn inputs_that_fuzzing_found_stay_fixed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions");
    for (name, target) in targets::TARGETS {
        let inputs = fs::read_dir(folder.join(name)).expect("each target has a folder");
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            println!("{}", path.display());
            target(&fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no example");
    }
    assert_eq!(
        fs::read_dir(folder).unwrap().count(),
        targets::TARGETS.len()
    );
}
