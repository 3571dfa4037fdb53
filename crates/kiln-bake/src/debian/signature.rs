//! Whether an `InRelease` file is signed by a key that kiln trusts: the Debian archive's, which are part of this
//! program, or those of the definition's `keyring`.
//!
//! OpenPGP itself is the `pgp` crate's; what a signature has to be to count is here: a binary or text signature, by a hash of the
//! SHA-2 family, not expired, by a key that is neither expired nor revoked.

use std::io::BufReader;

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::Signature;
use pgp::types::KeyDetails;

/// Of the package debian-archive-keyring.
const KEYRING: &[u8] = include_bytes!("../../keys/debian-archive-keyring.gpg");

/// The keys that may sign an archive.
pub(crate) struct Keys {
    keys: Vec<SignedPublicKey>,
    whose: &'static str,
}

impl Keys {
    pub(crate) fn debian() -> Result<Self, String> {
        Self::read(KEYRING, "a Debian archive key")
    }

    /// A keyring file, in text or binary form.
    pub(crate) fn read(keyring: &[u8], whose: &'static str) -> Result<Self, String> {
        let (keys, _) = SignedPublicKey::from_reader_many(BufReader::new(keyring))
            .map_err(|error| format!("it is no keyring ({error})"))?;
        // A key of a kind that is not known here can sign nothing.
        let keys: Vec<_> = keys.flatten().collect();
        if keys.is_empty() {
            return Err("it has no OpenPGP key that can be read".to_owned());
        }
        Ok(Self { keys, whose })
    }
}

/// The signed text of `inrelease`, as of `now` (seconds since 1970).
pub(crate) fn verified(inrelease: &str, now: u64, keys: &Keys) -> Result<String, String> {
    let (message, _) = CleartextSignedMessage::from_string(inrelease)
        .map_err(|error| format!("it is no clear-signed text ({error})"))?;
    let text = message.signed_text();
    let mut reason = format!("none of its signatures is by {}", keys.whose);
    for key in &keys.keys {
        for signature in message.signatures() {
            let by_primary = signature.verify(&key.primary_key, text.as_bytes()).is_ok();
            let by_subkey = key.public_subkeys.iter().find(|subkey| {
                // A subkey counts only when the primary key, which is trusted as it is, says that it is its own.
                signature.verify(&subkey.key, text.as_bytes()).is_ok()
                    && subkey.verify_bindings(&key.primary_key).is_ok()
            });
            if !by_primary && by_subkey.is_none() {
                continue;
            }
            let details = key
                .details
                .direct_signatures
                .iter()
                .chain(key.details.users.iter().flat_map(|user| &user.signatures))
                // Other people's certificates say nothing about the key's expiry.
                .filter(|statement| {
                    statement
                        .issuer_key_id()
                        .contains(&&key.primary_key.legacy_key_id())
                });
            let revoked = !key.details.revocation_signatures.is_empty()
                || by_subkey.is_some_and(|subkey| {
                    subkey
                        .signatures
                        .iter()
                        .any(|s| s.typ() == Some(pgp::packet::SignatureType::SubkeyRevocation))
                });
            let made = u64::from(key.primary_key.created_at().as_secs());
            let expired = expires(details, made).is_some_and(|at| at <= now)
                || by_subkey.is_some_and(|subkey| {
                    let made = u64::from(subkey.key.created_at().as_secs());
                    expires(subkey.signatures.iter(), made).is_some_and(|at| at <= now)
                });
            match acceptable(signature, now) {
                Err(why) => reason = why,
                Ok(()) if revoked => reason = "the key was revoked".to_owned(),
                Ok(()) if expired => reason = "the key has expired".to_owned(),
                Ok(()) => return Ok(text.replace("\r\n", "\n")),
            }
        }
    }
    Err(reason)
}

/// When the newest of a key's own statements says that it expires.
fn expires<'a>(statements: impl Iterator<Item = &'a Signature>, made: u64) -> Option<u64> {
    let newest = statements.max_by_key(|statement| statement.created().map(|at| at.as_secs()))?;
    let after = newest.key_expiration_time()?.as_secs();
    (after > 0).then(|| made + u64::from(after))
}

fn acceptable(signature: &Signature, now: u64) -> Result<(), String> {
    match signature.hash_alg() {
        Some(
            HashAlgorithm::Sha224
            | HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512,
        ) => {}
        other => {
            return Err(format!(
                "it is signed over {other:?}, which is not of the SHA-2 family"
            ));
        }
    }
    let Some(made) = signature.created().map(|at| u64::from(at.as_secs())) else {
        return Err("its signature has no date".to_owned());
    };
    let lasts = signature
        .signature_expiration_time()
        .map_or(0, |time| u64::from(time.as_secs()));
    if lasts > 0 && made + lasts <= now {
        return Err("its signature has expired".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_nobody_signed_is_refused() {
        assert!(
            verified("Origin: Debian\n", 0, &Keys::debian().unwrap())
                .unwrap_err()
                .contains("clear-signed")
        );
        let keys = Keys::debian().unwrap().keys;
        assert!(keys.len() >= 6, "the built-in keys are read");
        assert!(Keys::read(b"no key", "nobody").is_err());
    }

    /// As the archive published it; any release file of Debian's would do.
    const SIGNED: &str = include_str!("../../tests/data/InRelease");
    const DAY: u64 = 86_400;
    /// The day after its date, 2026-11-20.
    const THEN: u64 = 1_795_219_200;

    #[test]
    fn what_the_archive_signed_is_taken_and_a_changed_byte_is_not() {
        let text = verified(SIGNED, THEN, &Keys::debian().unwrap()).unwrap();
        assert!(
            text.starts_with("Origin: Debian\n") && text.contains("Codename: bookworm-updates\n")
        );
        let changed = SIGNED.replacen("bookworm-updates", "bookworm-updatez", 1);
        assert!(
            verified(&changed, THEN, &Keys::debian().unwrap())
                .unwrap_err()
                .contains("none of its signatures")
        );
    }

    #[test]
    fn a_key_that_has_expired_signs_nothing_any_more() {
        let reason = verified(SIGNED, THEN + 365 * DAY * 30, &Keys::debian().unwrap()).unwrap_err();
        assert!(reason.contains("expired"), "{reason}");
    }
}
