//! What the load asks for, and what it must get: the contract with `examples/bench`.

/// Lines of eight digits that fill a KiB: the body of `/large` by block.
const LINE_REPEATS: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `GET /`: one short line that names the release.
    Hello,
    /// `GET /slow`: answers after that many milliseconds.
    Slow { ms: u32 },
    /// `GET /large`: that many KiB in chunks, then a line with their CRC-32.
    Large { kib: u32 },
    /// `POST /echo`: the body comes back.
    Echo { body: Vec<u8> },
}

impl Request {
    /// The `count`th request of a worker, and whether it asks for a connection of its own: every second one is
    /// a POST, every second one of both kinds is on a new connection.
    pub(super) fn numbered(worker: u64, count: u64) -> (Self, bool) {
        let request = if count.is_multiple_of(2) {
            let seed = worker.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ count;
            let length = match count % 200 {
                100 => 256 * 1024,
                _ => splitmix(seed) % 4096,
            };
            Self::Echo {
                body: bytes(seed, length),
            }
        } else {
            match count % 100 {
                51 => Self::Slow { ms: 500 },
                odd if odd % 20 == 7 => Self::Large { kib: 128 },
                _ => Self::Hello,
            }
        };
        (request, (count / 2).is_multiple_of(2))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello => "GET /",
            Self::Slow { .. } => "GET /slow",
            Self::Large { .. } => "GET /large",
            Self::Echo { .. } => "POST /echo",
        }
    }

    pub(super) fn wire(&self, host: &str) -> Vec<u8> {
        match self {
            Self::Hello => get("/", host),
            Self::Slow { ms } => get(&format!("/slow?ms={ms}"), host),
            Self::Large { kib } => get(&format!("/large?kb={kib}"), host),
            Self::Echo { body } => {
                let mut wire = format!(
                    "POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                )
                .into_bytes();
                wire.extend_from_slice(body);
                wire
            }
        }
    }

    /// Whether this is the body that release `release` (as in `bench@7`) has to answer.
    pub(super) fn accepts(&self, body: &[u8], release: &str) -> bool {
        match self {
            Self::Hello => body == format!("{release} ok\n").as_bytes(),
            Self::Slow { ms } => body == format!("slow {ms}\n").as_bytes(),
            Self::Large { kib } => body == large_body(*kib),
            Self::Echo { body: sent } => body == sent,
        }
    }
}

fn get(path: &str, host: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

pub(super) fn large_body(kib: u32) -> Vec<u8> {
    let mut body = Vec::with_capacity(kib as usize * 1024 + 16);
    for block in 0..kib {
        body.extend_from_slice(format!("{block:08}").repeat(LINE_REPEATS).as_bytes());
    }
    let sum = crc32(&body);
    body.extend_from_slice(format!("crc32 {sum:08x}\n").as_bytes());
    body
}

/// CRC-32 as zlib has it: reflected, polynomial 0xEDB88320.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    value >> 1 ^ 0xEDB8_8320
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |sum, byte| {
        sum >> 8 ^ TABLE[((sum ^ u32::from(*byte)) & 0xFF) as usize]
    })
}

/// One step of SplitMix64: cheap, and the same on every run.
fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

fn bytes(seed: u64, length: u64) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut body = Vec::with_capacity(length + 8);
    let mut state = seed;
    while body.len() < length {
        state = splitmix(state);
        body.extend_from_slice(&state.to_le_bytes());
    }
    body.truncate(length);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_are_posts_and_half_of_each_kind_are_on_new_connections() {
        let all: Vec<_> = (0..2000).map(|count| Request::numbered(3, count)).collect();
        let posts = |fresh| {
            all.iter()
                .filter(|(r, f)| matches!(r, Request::Echo { .. }) && *f == fresh)
                .count()
        };
        assert_eq!((posts(true), posts(false)), (500, 500));
        assert_eq!(all.iter().filter(|(_, fresh)| *fresh).count(), 1000);
        let named = |name| all.iter().filter(|(r, _)| r.name() == name).count();
        assert_eq!((named("GET /slow"), named("GET /large")), (20, 100));
    }

    #[test]
    fn crc32_is_that_of_zlib() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn another_body_is_not_accepted() {
        let large = Request::Large { kib: 2 };
        let mut body = large_body(2);
        assert!(large.accepts(&body, "bench@1"));
        body[700] ^= 1;
        assert!(!large.accepts(&body, "bench@1"));
        assert!(!large.accepts(&large_body(1), "bench@1"));
        assert!(!Request::Hello.accepts(b"bench@1 ok\n", "bench@2"));
    }
}
