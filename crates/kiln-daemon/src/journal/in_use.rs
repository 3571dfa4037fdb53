use std::collections::BTreeSet;
use std::path::Path;

use kiln_model::Digest;

use super::error::JournalError;
use super::read::connect;
use super::schema::{FORMAT, format_of};

/// The images of all releases that the journal below `root` would start or return to, and whatever else its states name
/// by a digest. None where nothing was ever applied. A journal of an older format is read as it is.
pub fn images_in_use(root: &Path) -> Result<BTreeSet<Digest>, JournalError> {
    let path = root.join("journal.db");
    if !path.is_file() {
        return Ok(BTreeSet::new());
    }
    let mut db = connect(&path)?;
    // One transaction, so that no migration comes in between.
    let db = db.transaction().map_err(JournalError::Read)?;
    match format_of(&db).map_err(JournalError::Read)? {
        // Its first controller is only making it.
        0 => return Ok(BTreeSet::new()),
        1..=FORMAT => {}
        found => return Err(JournalError::Version { path, found }),
    }
    let mut select = db
        .prepare("SELECT state FROM service")
        .map_err(JournalError::Read)?;
    let mut rows = select.query([]).map_err(JournalError::Read)?;
    let mut images = BTreeSet::new();
    while let Some(row) = rows.next().map_err(JournalError::Read)? {
        let state: Vec<u8> = row.get(0).map_err(JournalError::Read)?;
        images.extend(kiln_oci::digests_in(&state));
    }
    Ok(images)
}
