//! An error as one line of text.

use std::error::Error;

/// The error's message and those of all its causes, from the outermost in, joined by `: `.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            let cause = self.1.as_deref()?;
            Some(cause)
        }
    }

    #[test]
    fn every_cause_is_told_once_and_in_order() {
        let innermost = Layer("no space left", None);
        let error = Layer(
            "starting failed",
            Some(Box::new(Layer("writing x", Some(Box::new(innermost))))),
        );
        assert_eq!(
            with_causes(&error),
            "starting failed: writing x: no space left"
        );
        assert_eq!(with_causes(&Layer("alone", None)), "alone");
    }
}
