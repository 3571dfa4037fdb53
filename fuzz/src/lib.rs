//! What kiln reads that others wrote, each as a function of bytes that must hold for every input. `cargo xtask fuzz TARGET` looks for
//! one that breaks it; the tests replay what was found (`found/`) and what it starts from (`seeds/`).

#![allow(clippy::disallowed_methods)] // temporary folders

mod archives;
mod definitions;
mod images;

/// One thing that is read.
pub struct Target {
    pub name: &'static str,
    /// Answers whether the input was taken. Panics where something does not hold.
    pub run: fn(&[u8]) -> bool,
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "dockerfile",
        run: definitions::dockerfile,
    },
    Target {
        name: "definition",
        run: definitions::definition,
    },
    Target {
        name: "ignore",
        run: definitions::ignore,
    },
    Target {
        name: "ar",
        run: archives::ar,
    },
    Target {
        name: "deb",
        run: archives::deb,
    },
    Target {
        name: "control",
        run: archives::control,
    },
    Target {
        name: "release",
        run: archives::release,
    },
    Target {
        name: "tar",
        run: images::tar,
    },
    Target {
        name: "manifest",
        run: images::manifest,
    },
];

pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
