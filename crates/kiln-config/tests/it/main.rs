//! Definitions as a person writes them, right and wrong.

mod accepted;
mod debian;
mod dockerfile;
mod each;
mod format;
mod functions;
mod image_test;
mod language;
mod rejected;
mod secret;
