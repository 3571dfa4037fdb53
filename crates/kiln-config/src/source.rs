//! A definition's texts and where a byte of them stands.

/// The text of a definition and the name to show for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As a person would type it: `examples/hello/kiln.hcl`.
    pub name: String,
    pub text: String,
}

/// Both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Source {
    /// Where the byte at `offset` stands; an offset past the end is the end.
    pub fn position(&self, offset: usize) -> Position {
        let offset = self.floor(offset);
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Position {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The line that holds `offset`, without its end, and the offset of its start.
    pub(crate) fn line_at(&self, offset: usize) -> (usize, &str) {
        let offset = self.floor(offset);
        let start = self.text[..offset].rfind('\n').map_or(0, |at| at + 1);
        let end = self.text[offset..]
            .find('\n')
            .map_or(self.text.len(), |at| offset + at);
        (start, self.text[start..end].trim_end_matches('\r'))
    }

    /// The parser's offsets are bytes, and may point past the end or into a character.
    fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// The files that make up a definition, and texts that were read on the way. An offset counts through all of them
/// one after the other, with one byte between two of them for "past the end of the first".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    texts: Vec<(usize, Source)>,
}

impl Sources {
    /// Returns the offset at which the text begins.
    pub(crate) fn add(&mut self, source: Source) -> usize {
        let start = self.end();
        self.texts.push((start, source));
        start
    }

    /// Where the next text will begin.
    pub(crate) fn end(&self) -> usize {
        self.texts
            .last()
            .map_or(0, |(start, last)| start + last.text.len() + 1)
    }

    /// The text that holds `offset`, and the offset within it.
    pub fn at(&self, offset: usize) -> Option<(&Source, usize)> {
        let index = self.texts.partition_point(|(start, _)| *start <= offset);
        let (start, source) = self.texts.get(index.checked_sub(1)?)?;
        Some((source, offset - start))
    }

    /// The first file, which stands for the definition where no place is known.
    pub fn first(&self) -> Option<&Source> {
        self.texts.first().map(|(_, source)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_belongs_to_the_text_that_holds_it() {
        let mut sources = Sources::default();
        for (name, text, start) in [("a", "12345", 0), ("b", "", 6), ("c", "xy", 7)] {
            let source = Source {
                name: name.into(),
                text: text.into(),
            };
            assert_eq!(sources.add(source), start);
        }
        for (offset, name, within) in [
            (0, "a", 0),
            (5, "a", 5),
            (6, "b", 0),
            (7, "c", 0),
            (99, "c", 92),
        ] {
            let (source, found) = sources.at(offset).unwrap();
            assert_eq!((source.name.as_str(), found), (name, within), "{offset}");
        }
    }

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = Source {
            name: String::new(),
            text: "a\nbéc\n".into(),
        };
        for (offset, line, column) in [
            (0, 1, 1),
            (2, 2, 1),
            (3, 2, 2),
            (4, 2, 2),
            (5, 2, 3),
            (99, 3, 1),
        ] {
            assert_eq!(
                source.position(offset),
                Position { line, column },
                "{offset}"
            );
        }
        assert_eq!(source.line_at(5), (2, "béc"));
    }
}
