//! The fuzzer: `KILN_FUZZ` names the target. To be started by `cargo xtask fuzz`.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<&kiln_fuzz::Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("KILN_FUZZ").unwrap_or_default();
        kiln_fuzz::target(&name).unwrap_or_else(|| panic!("no fuzz target `{name}`"))
    });
    let _ = (target.run)(data);
});
