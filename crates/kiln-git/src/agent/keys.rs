//! An SSH agent of our own for keys in files: it lists them and signs with them, and nothing else
//! (draft-ietf-sshm-ssh-agent). The keys stay in this process.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use rand_core::OsRng;
use rsa::{BigUint, Pkcs1v15Sign, RsaPrivateKey};
use sha2::{Digest, Sha256, Sha512};
use ssh_key::private::{KeypairData, RsaKeypair};
use ssh_key::{PrivateKey, Signature};

/// RSA keys of 16384 bits have 13 KiB.
const FILE_MAX: u64 = 64 << 10;
/// As OpenSSH has it.
const MESSAGE_MAX: u32 = 256 << 10;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// Flags of a request for a signature by an RSA key (RFC 8332). Without one it would be by SHA-1, which no server of today takes.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;
/// What a digest has before it in such a signature (RFC 8017, section 9.2).
const PREFIX_256: [u8; 19] =
    *b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";
const PREFIX_512: [u8; 19] =
    *b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40";

struct Key {
    key: PrivateKey,
    /// As the protocol has it.
    public: Vec<u8>,
    rsa: Option<RsaPrivateKey>,
}

/// Keys of files that the caller named.
#[derive(Default)]
pub struct SshKeys(Vec<Key>);

impl fmt::Debug for SshKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshKeys({})", self.0.len())
    }
}

impl SshKeys {
    /// Adds the key of a file. An error says what is wrong with it and what to do.
    pub fn add(&mut self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut text))
            .map_err(|error| format!("the key {shown} can't be read: {error}"))?;
        let begins = |name: &str| text.windows(name.len()).any(|part| part == name.as_bytes());
        if !begins("BEGIN OPENSSH PRIVATE KEY") {
            return Err(if begins("PRIVATE KEY") {
                format!(
                    "the key {shown} is not in OpenSSH's own form: `ssh-keygen -p -f {shown}` writes it so"
                )
            } else {
                format!("{shown} is neither an agent's socket nor a private key")
            });
        }
        let key = PrivateKey::from_openssh(&text)
            .map_err(|error| {
                format!("the key {shown} can't be understood ({error}): give it to an agent (ssh-add {shown}), and name the agent")
            })?;
        if key.is_encrypted() {
            return Err(format!(
                "the key {shown} has a passphrase: give it to an agent (ssh-add {shown}), and name the agent"
            ));
        }
        let cant = |error: &dyn fmt::Display| format!("the key {shown} can't be used: {error}");
        let rsa = match key.key_data() {
            KeypairData::Rsa(pair) => Some(rsa_key(pair).map_err(|error| cant(&error))?),
            KeypairData::Ed25519(_) | KeypairData::Ecdsa(_) => None,
            other => {
                let kind = other.algorithm().map_err(|error| cant(&error))?;
                return Err(format!(
                    "the key {shown} is of the kind {kind}: kiln has ed25519, ECDSA of 256 and 384 bits, and RSA"
                ));
            }
        };
        let public = key.public_key().to_bytes().map_err(|error| cant(&error))?;
        self.0.push(Key { key, public, rsa });
        Ok(())
    }

    /// Answers until the other side ends.
    pub(super) fn answer(&self, mut stream: impl Read + Write) -> io::Result<()> {
        loop {
            let mut head = [0; 4];
            match stream.read_exact(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            let length = u32::from_be_bytes(head);
            if length > MESSAGE_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut asked = vec![0; length as usize];
            stream.read_exact(&mut asked)?;
            let answer = self.answered(&asked).unwrap_or_else(|| vec![FAILURE]);
            let mut message = Vec::new();
            string(&mut message, &answer);
            stream.write_all(&message)?;
        }
    }

    /// None: a failure, of which the protocol says no more.
    fn answered(&self, asked: &[u8]) -> Option<Vec<u8>> {
        let (kind, mut rest) = asked.split_first()?;
        match *kind {
            REQUEST_IDENTITIES => {
                let mut answer = vec![IDENTITIES_ANSWER];
                answer.extend(u32::try_from(self.0.len()).ok()?.to_be_bytes());
                for key in &self.0 {
                    string(&mut answer, &key.public);
                    string(&mut answer, key.key.comment().as_bytes());
                }
                Some(answer)
            }
            SIGN_REQUEST => {
                let (public, data) = (taken(&mut rest)?, taken(&mut rest)?);
                let flags = u32::from_be_bytes(rest.try_into().ok()?);
                let key = self.0.iter().find(|key| key.public == public)?;
                let mut answer = vec![SIGN_RESPONSE];
                string(&mut answer, &key.signature(data, flags)?);
                Some(answer)
            }
            _ => None,
        }
    }
}

impl Key {
    fn signature(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let Some(rsa) = &self.rsa else {
            let signature: Signature = signature::Signer::try_sign(&self.key, data).ok()?;
            return Vec::try_from(signature).ok();
        };
        let (name, prefix, digest) = if flags & RSA_SHA2_512 != 0 {
            let digest = Sha512::digest(data).to_vec();
            ("rsa-sha2-512", PREFIX_512, digest)
        } else if flags & RSA_SHA2_256 != 0 {
            let digest = Sha256::digest(data).to_vec();
            ("rsa-sha2-256", PREFIX_256, digest)
        } else {
            return None;
        };
        let padding = Pkcs1v15Sign {
            hash_len: Some(digest.len()),
            prefix: prefix.into(),
        };
        let mut bytes = Vec::new();
        string(&mut bytes, name.as_bytes());
        string(
            &mut bytes,
            &rsa.sign_with_rng(&mut OsRng, padding, &digest).ok()?,
        );
        Some(bytes)
    }
}

fn rsa_key(pair: &RsaKeypair) -> Result<RsaPrivateKey, String> {
    let number = |number: &ssh_key::Mpint| {
        let bytes = number.as_positive_bytes();
        bytes
            .map(BigUint::from_bytes_be)
            .ok_or_else(|| "it has a number below zero".to_owned())
    };
    let (public, private) = (&pair.public, &pair.private);
    let primes = vec![number(&private.p)?, number(&private.q)?];
    RsaPrivateKey::from_components(
        number(&public.n)?,
        number(&public.e)?,
        number(&private.d)?,
        primes,
    )
    .map_err(|error| error.to_string())
}

/// Of the agent's protocol: a length, and as many bytes.
fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

fn taken<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let (bytes, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_a_failure() {
        let keys = SshKeys::default();
        assert_eq!(
            keys.answered(&[REQUEST_IDENTITIES]).unwrap(),
            [12, 0, 0, 0, 0]
        );
        for asked in [
            &b""[..],
            &[SIGN_REQUEST],
            &[SIGN_REQUEST, 0, 0, 0, 9],
            &[25],
        ] {
            assert_eq!(keys.answered(asked), None, "{asked:?}");
        }
    }

    #[test]
    fn files_that_are_no_keys_say_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for (text, said) in [
            ("", "neither an agent's socket"),
            ("-----BEGIN RSA PRIVATE KEY-----\n", "ssh-keygen -p -f"),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
                "can't be understood",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = SshKeys::default().add(&path).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
