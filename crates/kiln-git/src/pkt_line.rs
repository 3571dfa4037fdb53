//! The packets of Git's protocol (gitprotocol-common(5), "pkt-line Format").

pub(crate) fn line(out: &mut Vec<u8>, text: &str) {
    out.extend(format!("{:04x}", text.len() + 4).into_bytes());
    out.extend(text.as_bytes());
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Text(&'a [u8]),
    /// Flush, delimiter or the end of the answer.
    Mark,
}

pub(crate) struct Lines<'a>(pub(crate) &'a [u8]);

/// The length that a packet's first four bytes say, with them; none where they say none.
pub(crate) fn length(head: &[u8]) -> Option<usize> {
    let hex = std::str::from_utf8(head.get(..4)?).ok()?;
    usize::from_str_radix(hex, 16).ok()
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<Line<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (length, text) = match length(self.0) {
            Some(length @ 0..4) => (4.max(length), Line::Mark),
            Some(length) if length <= self.0.len() => (length, Line::Text(&self.0[4..length])),
            _ => {
                self.0 = &[];
                return Some(Err("its server's answer breaks off".to_owned()));
            }
        };
        self.0 = &self.0[length..];
        Some(match text {
            Line::Text(text) if text.starts_with(b"ERR ") => {
                let said = String::from_utf8_lossy(&text[4..]);
                Err(format!("its server says: {}", said.trim()))
            }
            line => Ok(line),
        })
    }
}

/// The pack of an answer to `fetch`: what its first side band says, after the section's name. It takes the answer's place, so
/// that there are no two of them in memory.
pub(crate) fn packfile(mut answer: Vec<u8>) -> Result<Vec<u8>, String> {
    let (mut is_pack, mut at, mut end) = (false, 0, 0);
    while at < answer.len() {
        let mut lines = Lines(&answer[at..]);
        let line = lines.next().transpose()?;
        at = answer.len() - lines.0.len();
        let Some(Line::Text(text)) = line else {
            continue;
        };
        if !is_pack {
            is_pack = text == b"packfile\n";
            continue;
        }
        match text.split_first() {
            Some((1, data)) => {
                let from = at - data.len();
                end += data.len();
                answer.copy_within(from..at, end - (at - from));
            }
            Some((3, said)) => {
                let said = String::from_utf8_lossy(said);
                return Err(format!("its server says: {}", said.trim()));
            }
            _ => {}
        }
    }
    answer.truncate(end);
    if answer.is_empty() {
        return Err("its server sends nothing: does it have that commit?".to_owned());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_break_off_are_errors() {
        let mut bytes = Vec::new();
        line(&mut bytes, "a\n");
        bytes.extend(b"0000");
        let lines: Vec<_> = Lines(&bytes).collect();
        assert_eq!(lines, [Ok(Line::Text(b"a\n")), Ok(Line::Mark)]);
        for wrong in [&b"000"[..], b"0009ab", b"zzzz", b"ffff"] {
            assert!(Lines(wrong).any(|line| line.is_err()), "{wrong:?}");
        }
        let said = Lines(b"0009ERR x").next();
        assert_eq!(said, Some(Err("its server says: x".to_owned())));
    }

    #[test]
    fn a_pack_is_what_the_first_band_says() {
        let packet = |text: &[u8]| [format!("{:04x}", text.len() + 4).as_bytes(), text].concat();
        let answer = |last: &[u8]| {
            let parts = [
                &b"shallow-info\n"[..],
                b"packfile\n",
                b"\x01PA",
                b"\x02half of it",
                b"\x01CK",
                last,
            ];
            let mut bytes: Vec<u8> = parts.iter().flat_map(|part| packet(part)).collect();
            bytes.extend(b"0000");
            bytes
        };
        assert_eq!(packfile(answer(b"\x01!")).unwrap(), b"PACK!");
        let error = packfile(answer(b"\x03no more")).unwrap_err();
        assert_eq!(error, "its server says: no more");
        assert!(packfile(answer(b"\x01")[..40].to_vec()).is_err());
        assert!(packfile(b"0000".to_vec()).is_err());
    }
}
