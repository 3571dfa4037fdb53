//! What an expression is worth. `jsonencode` shows it, in a service's environment.

use std::collections::BTreeMap;

use kiln_config::{ConfigErrors, Inputs, Source, VariableOrigin, VariableValue};
use proptest::prelude::*;

use crate::accepted::{inputs, load};

fn definition(head: &str, expression: &str) -> Source {
    Source {
        name: "kiln.hcl".to_owned(),
        text: format!(
            "project = \"p\"\n{head}\nimage \"i\" {{\n  version = \"1\"\n  cmd = [\"x\"]\n  debian {{ suite = \"sid\" }}\n}}\n\
             service \"s\" {{\n  image = image.i\n  env = {{ V = jsonencode({expression}) }}\n}}\n"
        ),
    }
}

fn evaluated(head: &str, expression: &str, inputs: &Inputs) -> Result<String, ConfigErrors> {
    let mut spec = load(&definition(head, expression), inputs)?.spec;
    let service = spec.services.get_mut(&"s".parse().unwrap()).unwrap();
    Ok(service.env.remove("V").unwrap())
}

/// Asserts that each expression is worth what is written as JSON.
pub(crate) fn worth(head: &str, cases: &[(&str, &str)]) {
    for (expression, json) in cases {
        match evaluated(head, expression, &inputs("dev")) {
            Ok(found) => assert_eq!(found, *json, "{expression}"),
            Err(errors) => panic!("{expression}: {errors}"),
        }
    }
}

/// Asserts that each expression is refused, the caret stands at the given text, and the message has the parts.
pub(crate) fn refused(head: &str, cases: &[(&str, &str, &[&str])]) {
    for (expression, at, parts) in cases {
        let errors = match evaluated(head, expression, &inputs("dev")) {
            Err(errors) => errors,
            Ok(found) => panic!("{expression} is {found}"),
        };
        let text = errors.to_string();
        let spans: Vec<String> = errors
            .diagnostics
            .iter()
            .filter_map(|diagnostic| {
                let span = diagnostic.span.clone()?;
                let (source, start) = errors.sources.at(span.start)?;
                source
                    .text
                    .get(start..start + span.len())
                    .map(str::to_owned)
            })
            .collect();
        assert_eq!(spans, [*at], "{expression}: {text}");
        for part in *parts {
            assert!(text.contains(part), "{expression}: no {part:?} in:\n{text}");
        }
    }
}

const HEAD: &str = r#"
variable "n" { default = 3 }
variable "tags" {
  type    = map(string)
  default = { b = "two", a = "one" }
}
variable "servers" {
  type = list(object({ name = string, port = optional(number, 80), note = optional(string) }))
  default = [{ name = "x" }, { name = "y", port = 81 }]
}
variable "region" { default = env("REGION") }
variable "unset" { default = env("NOT_SET") }
variable "nothing" {
  type    = string
  default = null
}
locals {
  later  = "${local.sooner}!"
  sooner = "hi"
}
locals { nested = { list = [[1, 2], [3]], map = { k = "v" } } }
"#;

#[test]
fn operators_are_those_of_terraform() {
    worth(
        HEAD,
        &[
            ("1 + 2 * 3", "7"),
            ("(1 + 2) * 3", "9"),
            ("7 % 4 - 10 / 4", "0.5"),
            ("-var.n + 1", "-2"),
            ("!true || 2 > 1 && 2 <= 2", "true"),
            ("1 == \"1\"", "false"),
            ("[1, { a = 2 }] == [1, { a = 2 }]", "true"),
            ("\"3\" + 4", "7"),
            ("var.n >= 3 ? \"many\" : \"few\"", "\"many\""),
            ("var.nothing == null", "true"),
            // What is not needed is not looked at.
            ("false && var.nothing.x", "false"),
            ("true || [][0]", "true"),
            ("true ? 1 : [][0]", "1"),
        ],
    );
    refused(
        HEAD,
        &[
            (
                "1 + \"x\"",
                "\"x\"",
                &["the right side of `+` is a string", "expected a number"],
            ),
            ("1 / 0", "0", &["divided by 0"]),
            ("1 ? 2 : 3", "1", &["the condition is a number"]),
            ("[] > 1", "[]", &["the left side of `>` is a list"]),
            ("9007199254740993", "9007199254740993", &["in quotes"]),
        ],
    );
}

#[test]
fn references_go_into_lists_and_maps() {
    worth(
        HEAD,
        &[
            ("local.later", "\"hi!\""),
            ("local.nested.list[0][1]", "2"),
            ("local.nested[\"map\"].k", "\"v\""),
            ("var.servers[*].port", "[80,81]"),
            ("var.servers.*.name", "[\"x\",\"y\"]"),
            ("var.servers.*.name[1]", "\"y\""),
            ("var.servers[0]", r#"{"name":"x","note":null,"port":80}"#),
            ("local.nested.list[*][0]", "[1,3]"),
            ("var.nothing[*]", "[]"),
            ("\"one\"[*]", "[\"one\"]"),
            ("[var.region, var.unset, path.module]", r#"["eu","","."]"#),
        ],
    );
    refused(
        HEAD,
        &[
            (
                "var.tagz",
                "var.tagz",
                &["there is no variable `tagz`", "write `var.tags`"],
            ),
            ("local.soner", "local.soner", &["write `local.sooner`"]),
            ("lokal.sooner", "lokal.sooner", &["write `local.sooner`"]),
            (
                "var.servers[0].prot",
                ".prot",
                &["there is no key `prot`", "write `port`"],
            ),
            ("var.servers.name", ".name", &["[*].name"]),
            (
                "var.servers[2]",
                "2",
                &["there is no item `2`", "from 0 to 1"],
            ),
            ("var.tags[\"zone\"]", "\"zone\"", &["it has `a`, `b`"]),
            ("each.key", "each.key", &["for_each"]),
        ],
    );
}

#[test]
fn for_makes_lists_and_maps() {
    worth(
        HEAD,
        &[
            ("[for s in var.servers : s.name]", r#"["x","y"]"#),
            (
                "[for i, s in var.servers : \"${i}=${s.name}\" if s.port > 80]",
                "[\"1=y\"]",
            ),
            (
                "[for k, v in var.tags : \"${k}=${v}\"]",
                r#"["a=one","b=two"]"#,
            ),
            (
                "{ for s in var.servers : s.name => s.port }",
                r#"{"x":80,"y":81}"#,
            ),
            (
                "{ for k, v in var.tags : v => k if k != \"a\" }",
                r#"{"two":"b"}"#,
            ),
            (
                "{ for w in [\"ab\", \"ac\", \"b\"] : substr(w, 0, 1) => w... }",
                r#"{"a":["ab","ac"],"b":["b"]}"#,
            ),
            (
                "[for x in [1, 2] : [for y in [x, x * 10] : y]]",
                "[[1,10],[2,20]]",
            ),
        ],
    );
    refused(
        HEAD,
        &[
            ("[for x in 3 : x]", "3", &["expected a list or a map"]),
            ("[for name in [1] : nmae]", "nmae", &["write `name`"]),
            (
                "{ for w in [\"a\", \"a\"] : w => 1 }",
                "w",
                &["the key `a` is defined twice", "`...`"],
            ),
            (
                "[for x in [1] : x if x]",
                "x",
                &["the condition of `for` is a number"],
            ),
        ],
    );
}

#[test]
fn templates_have_directives_and_heredocs() {
    worth(
        HEAD,
        &[
            ("\"${var.n}\"", "3"),
            ("\"a${var.n}b $${x} %%{y}\"", r#""a3b ${x} %{y}""#),
            (
                "\"%{ if var.n > 2 }many%{ else }few%{ endif }!\"",
                "\"many!\"",
            ),
            (
                "\"%{ for k, v in var.tags }${k}:${v};%{ endfor }\"",
                "\"a:one;b:two;\"",
            ),
            ("\"a ${~ var.n ~} b\"", "\"a3b\""),
            (
                "<<-EOT\n    one\n      two ${var.n}\n    EOT\n",
                r#""one\n  two 3\n""#,
            ),
            (
                "<<-EOT\n  %{~ for k in [\"a\", \"b\"] ~}\n  ${k}\n  %{~ endfor ~}\n  end\n  EOT\n",
                r#""abend\n""#,
            ),
            (
                "templatefile(\"list.tpl\", { names = [\"a\", \"b\"] })",
                r#""- A\n- B\n""#,
            ),
            ("templatefile(\"./plain.tpl\", { name = 3 })", "\"3\""),
            ("file(\"${path.module}/hello.txt\")", r#""hello\n""#),
        ],
    );
    refused(
        HEAD,
        &[
            (
                "\"x${var.tags}\"",
                "var.tags",
                &["the interpolated value is a map"],
            ),
            ("\"%{ for x in 1 }%{ endfor }\"", "1", &["a list or a map"]),
            (
                "templatefile(\"wrong.tpl\", { name = 1 })",
                "nmae",
                &["wrong.tpl:2:5", "write `name`"],
            ),
            (
                "templatefile(\"plain.tpl\", {})",
                "name",
                &["plain.tpl:1:3", "only the values"],
            ),
            (
                "file(\"nowhere\")",
                "\"nowhere\"",
                &["there is no such file"],
            ),
            (
                "file(\"binary\")",
                "\"binary\"",
                &["no UTF-8", "filebase64"],
            ),
            (
                "env(\"REGION\")",
                "env(\"REGION\")",
                &["`env` outside of a variable's default"],
            ),
        ],
    );
}

fn given(name: &str, text: &str) -> Inputs {
    Inputs {
        variables: BTreeMap::from([(
            name.to_owned(),
            VariableValue {
                text: text.to_owned(),
                origin: VariableOrigin::Argument,
            },
        )]),
        ..inputs("dev")
    }
}

#[test]
fn a_variable_from_outside_has_its_type() {
    for (name, text, expression, json) in [
        ("n", "7", "var.n", "7"),
        ("tags", "{ x = \"y\" }", "var.tags", r#"{"x":"y"}"#),
        (
            "servers",
            "[{ name = \"z\" }]",
            "var.servers[*].port",
            "[80]",
        ),
        ("region", "[not a list", "var.region", "\"[not a list\""),
    ] {
        let found = evaluated(HEAD, expression, &given(name, text)).unwrap();
        assert_eq!(found, json, "{name}={text}");
    }
    for (name, text, part) in [
        ("n", "x", "expected a number"),
        ("tags", "[1]", "expected a map"),
        ("tags", "{ x = ", "--var tags:1:"),
        ("tags", "{ x = var.n }", "there is no"),
        ("servers", "[{ nam = \"z\" }]", "write `name`"),
        (
            "servers",
            "[{ name = \"z\", port = \"1\" }]",
            "expected a number",
        ),
    ] {
        let errors = evaluated(HEAD, "1", &given(name, text)).unwrap_err();
        assert!(errors.to_string().contains(part), "{name}={text}: {errors}");
    }
}

#[test]
fn a_validation_says_what_is_wrong_with_a_value() {
    let head = r#"
variable "port" {
  type    = number
  default = 8080
  validation {
    condition     = var.port >= 1024 && var.port < local.most
    error_message = "A port below ${local.most}, not ${var.port}."
  }
}
locals { most = 10000 }
"#;
    assert_eq!(evaluated(head, "var.port", &inputs("dev")).unwrap(), "8080");
    let errors = evaluated(head, "1", &given("port", "80")).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.contains(
            "the variable `port` has a value that is not valid: A port below 10000, not 80."
        ),
        "{text}"
    );
    assert_eq!(errors.diagnostics.len(), 1, "{text}");
}

#[test]
fn what_depends_on_itself_is_refused() {
    for head in [
        "locals {\n a = local.b\n b = local.a\n}",
        "locals { a = [for x in [1] : local.a] }",
        "variable \"a\" { default = var.a }",
    ] {
        let errors = evaluated(head, "1", &inputs("dev")).unwrap_err();
        assert!(errors.to_string().contains("depends on itself"), "{errors}");
    }
}

/// A failure inside `try` is found again where nothing catches it.
#[test]
fn try_forgets_only_what_it_catches() {
    let head = "locals {\n  wrong = [][0]\n  kept  = try(local.wrong, \"fallback\")\n}";
    let errors = evaluated(head, "local.kept", &inputs("dev")).unwrap_err();
    assert_eq!(errors.diagnostics.len(), 1, "{errors}");
    worth(
        "",
        &[
            ("try([][0], {}.a, 3)", "3"),
            ("can([][0])", "false"),
            ("can(1)", "true"),
        ],
    );
    refused(
        "",
        &[("try([][0], [1][7])", "7", &["there is no item `7`"])],
    );
}

#[test]
fn a_sensitive_value_is_kept_out_of_everything_but_a_secret() {
    let head = r#"
variable "password" {
  type      = string
  sensitive = true
  default   = "hunter2"
}
locals { url = "db://${var.password}" }
"#;
    for expression in [
        "var.password",
        "local.url",
        "var.password == \"x\" ? 1 : 2",
        "[for c in split(\"\", var.password) : 1]",
        "sensitive(\"x\")",
        "sha256(var.password)",
        // Nor does an error show it.
        "{ a = 1 }[var.password]",
        "file(var.password)",
        "var.password + 1",
        "tonumber(var.password)",
        "regex(var.password, \"x\")",
    ] {
        let errors = evaluated(head, expression, &inputs("dev")).unwrap_err();
        let text = errors.to_string();
        let shown: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("hunter2"))
            .collect();
        assert_eq!(shown, Vec::<&str>::new(), "{expression}: {text}");
    }
    let errors = evaluated(head, "local.url", &inputs("dev")).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.contains("a sensitive value, of the variable `password`, in `env` of `service \"s\"`"),
        "{text}"
    );
    // What it is not used in is right.
    assert_eq!(evaluated(head, "1", &inputs("dev")).unwrap(), "1");
    let typed = head
        .replace("string", "list(number)")
        .replace("\"hunter2\"", "[]");
    let errors = evaluated(&typed, "1", &given("password", "[hunter2]")).unwrap_err();
    assert!(!errors.to_string().contains("hunter2"), "{errors}");
}

/// A few lines must not fill the memory, nor take the stack.
#[test]
fn what_grows_without_bound_is_refused() {
    let mut doubling = String::from("locals {\n  l0 = [1, 2, 3, 4]\n");
    for n in 1..40 {
        doubling.push_str(&format!(
            "  l{n} = concat(local.l{}, local.l{})\n",
            n - 1,
            n - 1
        ));
    }
    doubling.push('}');
    let mut chain = String::from("locals {\n  l0 = 1\n");
    for n in 1..2000 {
        chain.push_str(&format!("  l{n} = local.l{} + 1\n", n - 1));
    }
    chain.push('}');
    let deep = format!("locals {{ x = {}1{} }}", "[".repeat(60), "]".repeat(60));
    let loops = "locals { x = [for a in range(1000) : [for b in range(1000) : [for c in range(1000) : 1]]] }";
    for head in [doubling.as_str(), loops] {
        let errors = evaluated(head, "1", &inputs("dev")).unwrap_err();
        assert!(errors.to_string().contains("is too large"), "{errors}");
        assert_eq!(errors.diagnostics.len(), 1, "{errors}");
    }
    assert_eq!(evaluated(&deep, "1", &inputs("dev")).unwrap(), "1");
    let reversed: Vec<&str> = chain
        .lines()
        .rev()
        .filter(|line| line.contains(" = "))
        .collect();
    for head in [
        chain.clone(),
        format!("locals {{\n{}\n}}", reversed.join("\n")),
    ] {
        match evaluated(&head, "local.l1999", &inputs("dev")) {
            Ok(found) => assert_eq!(found, "2000"),
            Err(errors) => assert!(errors.to_string().contains("is too large"), "{errors}"),
        }
    }
}

/// Pieces of the language in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        proptest::sample::select(vec![
            "var.n",
            "local.nested",
            "var.tags",
            "[",
            "]",
            "{",
            "}",
            "(",
            ")",
            ",",
            ":",
            "=>",
            "=",
            "...",
            "\"",
            "${",
            "%{",
            "for x in ",
            "for k, v in ",
            "if ",
            "else",
            "endif",
            "endfor",
            "x",
            "?",
            "+",
            "-",
            "*",
            "/",
            "%",
            "==",
            "!",
            "&&",
            "||",
            "<",
            "[*]",
            ".*",
            ".a",
            "[0]",
            "[-1]",
            "1e308",
            "0",
            "null",
            "true",
            "<<E\n",
            "\nE\n",
            "~",
            "$",
            "\\u",
            "\u{e9}",
            "\0",
            " ",
            "\n",
            "try(",
            "can(",
            "length(",
            "format(\"%",
            "substr(",
            "slice(",
            "element(",
            "range(",
            "formatdate(",
            "timeadd(\"",
            "regex(",
            "replace(",
            "join(",
            "split(",
            "parseint(",
            "jsondecode(",
            "csvdecode(",
            "urldecode(",
            "chunklist(",
            "setproduct(",
            "indent(",
            "zipmap(",
            "merge(",
            "templatefile(\"torn.tpl\", ",
            "file(",
            "sensitive(",
        ])
        .prop_map(str::to_owned),
        "[a-z0-9%.\\[\\]\"-]{1,4}",
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_expression_makes_it_panic(expression in pieces()) {
        if let Err(errors) = evaluated(HEAD, &expression, &inputs("dev")) {
            prop_assert!(!errors.diagnostics.is_empty());
            prop_assert!(errors.to_string().contains("error: "));
        }
    }
}
