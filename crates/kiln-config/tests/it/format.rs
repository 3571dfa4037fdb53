//! `kiln fmt`: the form, and what never changes.

use kiln_config::{Source, format};
use proptest::prelude::*;

use crate::accepted::EXAMPLE;

fn formatted(text: &str) -> String {
    let source = Source {
        name: "kiln.hcl".to_owned(),
        text: text.to_owned(),
    };
    match format(&source) {
        Ok(text) => text,
        Err(errors) => panic!("{errors}"),
    }
}

const WILD: &str = r#"

project="shop"   # the name
# above
variable   "x"{
type=list( string )
     default=[ "a","b" , -1,x[ * ].y, a.*.b ]   // why
  longer_name   =   !var.a&&b-1>-2 ? {} : { a=1,b : 2 }
  /* one
       two */
  tags={
  a=1      # first
     bcd=2 # second
  }
        text=<<-EOT
   kept   ${var.x}
     as it is
   EOT
  call=foo(1,
[2,
3], x...)
}
image "a" {
    copy { from="a" }
    list=[{
a=1
},{
b=2
}]
   run = ["echo \"${join(",", [for x in y:x if x!=""])}\"  }", "$${x"]
}


"#;

const TAME: &str = r#"project = "shop" # the name
# above
variable "x" {
  type        = list(string)
  default     = ["a", "b", -1, x[*].y, a.*.b] // why
  longer_name = !var.a && b-1 > -2 ? {} : { a = 1, b : 2 }
  /* one
       two */
  tags = {
    a   = 1 # first
    bcd = 2 # second
  }
  text = <<-EOT
   kept   ${var.x}
     as it is
   EOT
  call = foo(1,
    [2,
      3], x...)
}
image "a" {
  copy { from = "a" }
  list = [{
    a = 1
  }, {
    b = 2
  }]
  run = ["echo \"${join(",", [for x in y:x if x!=""])}\"  }", "$${x"]
}
"#;

#[test]
fn there_is_one_form() {
    assert_eq!(formatted(WILD), TAME);
    assert_eq!(formatted(TAME), TAME);
    assert_eq!(formatted(""), "");
    assert_eq!(formatted("\r\na=1\r\n"), "a = 1\n");
}

/// The documents and the examples are in it.
#[test]
fn what_kiln_shows_has_the_form() {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = std::fs::read_to_string(top.join("docs/definition.md")).unwrap();
    let mut texts: Vec<String> = document
        .split("```hcl\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect();
    for entry in std::fs::read_dir(top.join("examples")).unwrap() {
        let path = entry.unwrap().path().join("kiln.hcl");
        texts.push(std::fs::read_to_string(path).unwrap());
    }
    assert!(texts.len() >= 3);
    for text in texts {
        assert_eq!(formatted(&text), text);
    }
}

#[test]
fn what_is_no_hcl_is_refused_where_it_is_wrong() {
    let source = Source {
        name: "kiln.hcl".to_owned(),
        text: "a = 1\nb = = 2\n".to_owned(),
    };
    let errors = format(&source).unwrap_err().to_string();
    assert!(
        errors.contains("this is not valid HCL\n  --> kiln.hcl:2:5"),
        "{errors}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Once formatted, always formatted; and the parser sees the same (which `format` itself checks).
    #[test]
    fn it_settles_at_once_and_changes_no_meaning(
        cuts in proptest::collection::vec((0..EXAMPLE.len(), 0_usize..12), 0..12),
    ) {
        let insertions = [" ", "\n", "\t", "  ", "# c\n", "/* c */", "-", "!", "\"", "{", "(", ","];
        let mut text = format!("{EXAMPLE}{WILD}");
        for (at, what) in cuts {
            let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(at, insertions[what]);
        }
        let source = Source { name: "kiln.hcl".to_owned(), text: text.clone() };
        match kiln_config::format(&source) {
            Ok(once) => prop_assert_eq!(formatted(&once), once),
            Err(errors) => prop_assert!(errors.to_string().contains("not valid HCL"), "{}\n{}", errors, text),
        }
    }
}
