//! Whether the command that an image is for is in it.

use std::path::{Path, PathBuf};

use kiln_engine::Overlay;
use kiln_oci::{ImageConfig, Layer, Store};

use crate::error::BakeError;
use crate::front::definition::request::BakeRequest;
use crate::in_root;
use crate::step::container;
use crate::step::scratch::Scratch;

/// What the image is for is in it: found now rather than when it is started.
pub(crate) fn check_command(
    store: &Store,
    request: &BakeRequest<'_>,
    layers: &[Layer],
    config: &ImageConfig,
) -> Result<(), BakeError> {
    let run = &config.config;
    let Some(command) = run.entrypoint.iter().chain(&run.cmd).next() else {
        return Ok(());
    };
    let scratch = Scratch::new(request.work)?;
    let lowers = store.lowers(layers)?;
    let view = Overlay::mount(&lowers, scratch.path())
        .map_err(|error| BakeError::View(std::io::Error::other(error)))?;
    let path = run
        .env
        .iter()
        .find_map(|pair| pair.strip_prefix("PATH="))
        .unwrap_or(container::PATH);
    let candidates: Vec<PathBuf> = if command.contains('/') {
        vec![Path::new(&run.working_dir).join(command)]
    } else {
        path.split(':')
            .map(|folder| Path::new(folder).join(command))
            .collect()
    };
    let image = request.image.name.to_string();
    let found = candidates
        .iter()
        .find_map(|path| mode_inside(view.path(), path));
    match found {
        None => Err(BakeError::NoCommand {
            image,
            command: command.clone(),
        }),
        Some(mode) if mode & 0o111 == 0 => Err(BakeError::NotExecutable {
            image,
            command: command.clone(),
        }),
        Some(_) => Ok(()),
    }
}

/// The mode of a file inside `root`, links followed inside it.
fn mode_inside(root: &Path, path: &Path) -> Option<u32> {
    let file = in_root::open(root, path, rustix::fs::OFlags::PATH).ok()?;
    let there = rustix::fs::fstat(&file).ok()?;
    (rustix::fs::FileType::from_raw_mode(there.st_mode) == rustix::fs::FileType::RegularFile)
        .then_some(there.st_mode)
}
