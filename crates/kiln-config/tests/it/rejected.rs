//! Every `tests/golden/NAME.hcl` is refused with exactly the text of `NAME.txt`.
//! After a change that is meant: `KILN_BLESS=1 cargo test -p kiln-config`, and read the difference.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_config::{Inputs, Source, VariableOrigin, VariableValue};

use crate::accepted::{EXAMPLE, inputs, load};

fn errors(text: &str, inputs: &Inputs) -> String {
    let source = Source {
        name: "kiln.hcl".to_owned(),
        text: text.to_owned(),
    };
    load(&source, inputs)
        .expect_err("it has to be refused")
        .to_string()
}

#[test]
fn what_is_wrong_is_shown_with_its_place_and_what_to_type() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "hcl") {
            continue;
        }
        seen += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let mut found = errors(&text, &inputs("dev"));
        found.push('\n');
        let golden = path.with_extension("txt");
        if std::env::var_os("KILN_BLESS").is_some() {
            std::fs::write(&golden, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            found == expected,
            "{} is not what is found:\n{found}",
            golden.display()
        );
    }
    assert!(seen >= 6, "the golden files are gone");
}

/// The sample of the design: all that this version does not do yet is named, and nothing else is wrong with it.
#[test]
fn the_designs_sample_is_refused_only_for_what_is_not_there_yet() {
    let source = Source {
        name: "kiln.hcl".into(),
        text: include_str!("../golden/design-sample.hcl").into(),
    };
    let errors = load(&source, &inputs("production")).unwrap_err();
    let mut named = Vec::new();
    for diagnostic in &errors.diagnostics {
        match &diagnostic.problem {
            kiln_config::Problem::Unsupported { what } => named.push(what.as_str()),
            other => panic!("{other}"),
        }
    }
    assert_eq!(
        named,
        [
            "`volume` in `service \"api\"`",
            "`rotation` in `service \"api\"`",
            "`after` in `environment \"production\"`",
            "`approvals` in `environment \"production\"`",
        ]
    );
}

#[test]
fn an_environment_that_is_not_there_is_refused_with_the_nearest() {
    assert_eq!(
        errors(EXAMPLE, &inputs("prodution")),
        "error: there is no environment `prodution`\n  --> kiln.hcl\n   = expected: staging, production, dev\n   \
         = help: write `--env production`\n\n1 error in kiln.hcl"
    );
}

#[test]
fn a_variable_that_is_not_there_is_refused_when_it_was_asked_for_and_only_warned_about_otherwise() {
    let given = |origin| Inputs {
        variables: BTreeMap::from([(
            "greetin".to_owned(),
            VariableValue {
                text: "x".to_owned(),
                origin,
            },
        )]),
        ..inputs("dev")
    };
    assert_eq!(
        errors(EXAMPLE, &given(VariableOrigin::Argument)),
        "error: there is no variable `greetin`\n  --> kiln.hcl\n   = expected: `--var` names a variable of the \
         definition\n   = help: write `--var greeting=x`\n\n1 error in kiln.hcl"
    );
    let source = Source {
        name: "kiln.hcl".into(),
        text: EXAMPLE.into(),
    };
    let loaded = load(&source, &given(VariableOrigin::Environment)).unwrap();
    assert_eq!(
        loaded.warnings,
        ["KILN_VAR_greetin is set, and the definition has no variable `greetin`"]
    );
}

/// Whatever is typed in the middle of a right definition: an answer, never a panic.
#[test]
fn no_text_makes_it_panic() {
    let insertions = [
        "", "\"", "{", "}", "$", "${", "=", "\u{e9}", "\0", "<<E\n", "[", "1e400", "var.", "null",
    ];
    let boundaries: Vec<usize> = (0..=EXAMPLE.len())
        .filter(|at| EXAMPLE.is_char_boundary(*at))
        .collect();
    let mut refused = 0;
    for at in boundaries.iter().step_by(7) {
        for insertion in insertions {
            let text = format!("{}{insertion}{}", &EXAMPLE[..*at], &EXAMPLE[*at..]);
            let source = Source {
                name: "kiln.hcl".into(),
                text,
            };
            if let Err(errors) = load(&source, &inputs("dev")) {
                assert!(!errors.diagnostics.is_empty());
                assert!(errors.to_string().contains("error: "));
                refused += 1;
            }
        }
        let cut = Source {
            name: "kiln.hcl".into(),
            text: EXAMPLE[..*at].to_owned(),
        };
        if let Err(errors) = load(&cut, &inputs("dev")) {
            assert!(!errors.diagnostics.is_empty());
        }
    }
    assert!(refused > 500, "{refused}");
}
