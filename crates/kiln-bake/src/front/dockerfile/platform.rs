//! `--platform`: of the command and of FROM. Only this machine's own is baked for.

use std::ops::Range;

use kiln_config::dockerfile::Complaint;

use crate::arch;

/// Whether `text` is this machine's, in any of its spellings: `linux/amd64`, `amd64`, `linux`, `linux/x86_64`, `linux/arm64/v8`.
pub(super) fn is_here(text: &str) -> bool {
    fits(text, arch::arch())
}

fn fits(text: &str, here: &str) -> bool {
    let text = text.to_lowercase();
    let parts: Vec<&str> = text.split('/').collect();
    let (os, arch, variant) = match parts[..] {
        ["local" | "linux"] => return true,
        [arch] => ("linux", arch, ""),
        [os, arch] => (os, arch, ""),
        [os, arch, variant] => (os, arch, variant),
        _ => return false,
    };
    let (arch, variant) = match (arch, variant) {
        ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
        ("aarch64" | "arm64", "" | "v8" | "8") => ("arm64", ""),
        other => other,
    };
    os == "linux" && arch == here && variant.is_empty()
}

pub(super) fn another(place: Range<usize>, wanted: &str) -> Complaint {
    Complaint::error(
        place,
        format!("kiln bakes for this machine's platform only, and `{wanted}` is another"),
        format!("it is linux/{}", arch::arch()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_several_spellings() {
        for (text, here, expected) in [
            ("linux/amd64", "amd64", true),
            ("Linux/x86_64", "amd64", true),
            ("amd64", "amd64", true),
            ("linux", "arm64", true),
            ("local", "arm64", true),
            ("linux/arm64/v8", "arm64", true),
            ("aarch64", "arm64", true),
            ("linux/amd64/v1", "amd64", true),
            ("linux/amd64/v3", "amd64", false),
            ("linux/arm64", "amd64", false),
            ("linux/arm/v7", "arm64", false),
            ("windows/amd64", "amd64", false),
            ("a/b/c/d", "amd64", false),
            ("", "amd64", false),
        ] {
            assert_eq!(fits(text, here), expected, "{text} on {here}");
        }
    }
}
