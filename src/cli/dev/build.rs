//! Copies the official socket.io-client bundle, which `fetch-client` has fetched, to the
//! place from which `src/cli/dev.rs` embeds it. Without the bundle, the copy is empty: a
//! plain `cargo build` needs no network, and the page says what is missing.

use std::{env, fs, path::Path};

fn main() {
    let folder = Path::new("src/cli/dev");
    let bundle = folder.join("socket.io.min.js");
    // The folder, because a watched file that does not exist causes a rebuild every time.
    println!("cargo::rerun-if-changed=src/cli/dev");
    if env::var_os("CARGO_FEATURE_CLI").is_none() {
        return;
    }
    let script = fs::read(bundle).unwrap_or_default();
    let target = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&target).join("socket.io.js"), script).expect("OUT_DIR is writable");
}
