//! `secret` blocks; and what is sensitive, which stands nowhere else.

use kiln_config::Source;
use kiln_model::SecretSpec;

use crate::accepted::{inputs, load};

const HEAD: &str = r#"project = "p"
variable "password" {
  type      = string
  sensitive = true
  default   = "hunter2"
}
variable "open" { default = "seen" }
locals {
  url   = "db://${var.password}"
  map   = { open = "seen", closed = var.password }
  maybe = true ? var.open : var.password
}
"#;
const IMAGE: &str =
    "image \"i\" {\n  version = \"1\"\n  cmd = [\"x\"]\n  debian { suite = \"sid\" }\n}\n";

fn source(text: String) -> Source {
    Source {
        name: "kiln.hcl".to_owned(),
        text,
    }
}

fn service(inside: &str) -> Source {
    source(format!(
        "{HEAD}{IMAGE}service \"s\" {{\n  image = image.i\n{inside}\n}}\n"
    ))
}

fn secrets(inside: &str) -> Vec<(String, SecretSpec)> {
    let loaded = load(&service(inside), &inputs("dev")).unwrap_or_else(|errors| panic!("{errors}"));
    let spec = &loaded.spec.services[&"s".parse().unwrap()];
    spec.secrets.clone().into_iter().collect()
}

#[test]
fn a_secret_names_where_it_is() {
    let file = |file: &str, key: Option<&str>, sensitive: bool| SecretSpec {
        file: file.to_owned(),
        key: key.map(str::to_owned),
        sensitive,
    };
    let found = secrets(
        "  env = { A = \"1\" }\n  secret \"DATABASE_URL\" { from = \"file:secrets.age#database_url\" }\n  \
         secret \"CERT\" { from = \"file:tls/${var.open}.pem\" }\n  secret \"HIDDEN\" { from = \"file:${var.password}.age#x\" }",
    );
    let expected = [
        ("CERT", file("tls/seen.pem", None, false)),
        (
            "DATABASE_URL",
            file("secrets.age", Some("database_url"), false),
        ),
        ("HIDDEN", file("hunter2.age", Some("x"), true)),
    ];
    assert_eq!(found, expected.map(|(name, spec)| (name.to_owned(), spec)));
    // What is sensitive is shown to nobody.
    let shown = format!("{found:?} {}", serde_json::to_string(&found).unwrap());
    assert!(
        !shown.contains("hunter2") && shown.contains("database_url"),
        "{shown}"
    );
}

#[test]
fn an_environment_adds_and_replaces_secrets() {
    let text = format!(
        "{HEAD}{IMAGE}service \"s\" {{\n  image = image.i\n  secret \"A\" {{ from = \"file:a#1\" }}\n}}\n\
         environment \"production\" {{\n  service \"s\" {{\n    secret \"A\" {{ from = \"file:b#1\" }}\n    secret \"B\" {{ from = \"file:b#2\" }}\n  }}\n}}\n"
    );
    let loaded = load(&source(text), &inputs("production")).unwrap();
    let secrets = &loaded.spec.services[&"s".parse().unwrap()].secrets;
    let files: Vec<_> = secrets
        .iter()
        .map(|(name, secret)| format!("{name} {secret:?}"))
        .collect();
    assert_eq!(files, ["A file:b#1", "B file:b#2"]);
}

#[test]
fn a_wrong_secret_is_refused_with_what_to_write() {
    let cases: [(&str, &[&str]); 11] = [
        (
            "secret \"A\" {}",
            &["lacks `from`", "file:secrets.age#name"],
        ),
        (
            "secret \"A\" { from = \"secrets.age\" }",
            &["file:PATH#KEY"],
        ),
        (
            "secret \"A\" { from = \"flie:a#b\" }",
            &["`flie:a#b`", "file:PATH#KEY"],
        ),
        ("secret \"A\" { from = \"vault:a#b\" }", &["no other place"]),
        (
            "secret \"A\" { from = \"file:/etc/x\" }",
            &["inside the definition's folder"],
        ),
        ("secret \"A\" { from = \"file:../x#y\" }", &["without `..`"]),
        ("secret \"A\" { from = \"file:x#\" }", &["behind the `#`"]),
        (
            "secret \"a-b\" { from = \"file:x\" }",
            &["letters, digits and `_`"],
        ),
        (
            "secret \"PORT\" { from = \"file:x\" }",
            &["kiln does not set itself"],
        ),
        ("secret \"A\" { value = \"x\" }", &["never in a definition"]),
        (
            "env = { A = \"1\" }\n  secret \"A\" { from = \"file:x\" }",
            &["both as a `secret` and in `env`"],
        ),
    ];
    for (inside, parts) in cases {
        let errors = load(&service(inside), &inputs("dev")).expect_err(inside);
        let text = errors.to_string();
        for part in parts {
            assert!(text.contains(part), "{inside}: no {part:?} in\n{text}");
        }
        assert!(text.contains("kiln.hcl:"), "{text}");
    }
    let errors = load(
        &service("secret \"A\" { from = \"${var.password}:x\" }"),
        &inputs("dev"),
    );
    let text = errors.unwrap_err().to_string();
    assert!(!text.contains("hunter2"), "{text}");
}

/// By whatever way it goes.
#[test]
fn what_is_sensitive_stands_nowhere_else() {
    for expression in [
        "\"${var.password}\"",
        "local.url",
        "local.map.closed",
        "local.maybe == \"seen\" ? var.password : \"\"",
        "\"%{ if var.password == \"a\" }a%{ endif }\"",
        "\"%{ for c in [var.password] }${c}%{ endfor }\"",
        "<<EOT\n${var.password}\nEOT\n",
        "templatefile(\"plain.tpl\", { name = var.password })",
        "join(\",\", [for x in [var.password] : upper(x)])",
        "join(\",\", values({ for k, v in local.map : k => v }))",
        "join(\",\", [\"a\", var.password][*])",
        "join(\",\", keys({ (var.password) = 1 }))",
        "base64encode(var.password)",
        "substr(var.password, 0, 1)",
        "format(\"%s\", var.password)",
        "jsonencode(local.map)",
        "yamlencode([var.password])",
        "lookup({ a = var.password }, \"a\", \"\")",
        "lookup({}, \"a\", var.password)",
        "try(nothing, var.password)",
        "coalesce(\"\", var.password)",
        "tostring(length(var.password))",
        "tostring(can(file(var.password)))",
        "tostring(var.password == \"hunter2\")",
        "tostring(!contains([\"a\"], var.password))",
        "element([\"a\", \"b\"], length(var.password))",
        "sensitive(\"hunter2\")",
    ] {
        let inside = format!("  env = {{ V = {expression} }}");
        let errors = load(&service(&inside), &inputs("dev")).expect_err(expression);
        let text = errors.to_string();
        assert!(
            text.contains("a sensitive value") && text.contains("`env` of `service \"s\"`"),
            "{expression}: {text}"
        );
        // But where it is written down itself.
        let shown = text
            .lines()
            .any(|line| line.contains("hunter2") && !line.contains("\"hunter2\""));
        assert!(!shown, "{expression}: {text}");
    }
    // What is not chosen is not looked at.
    let loaded = load(&service("  env = { V = local.maybe }"), &inputs("dev"));
    assert!(loaded.is_ok(), "{loaded:?}");
}

#[test]
fn what_is_sensitive_stands_in_no_place_of_a_definition() {
    let image = |inside: &str| {
        format!(
            "{HEAD}image \"i\" {{\n  version = \"1\"\n  cmd = [\"x\"]\n  debian {{ suite = \"sid\" }}\n  {inside}\n}}\n"
        )
    };
    let service = |inside: &str| {
        format!("{HEAD}{IMAGE}service \"s\" {{\n  image = image.i\n  {inside}\n}}\n")
    };
    let cases = [
        image("env = { A = var.password }"),
        image("run = [\"echo ${var.password}\"]"),
        image("labels = { a = local.url }"),
        image("workdir = \"/${var.password}\""),
        image("entrypoint = [var.password]"),
        image("allow_leak = [\"rule:${var.password}\"]"),
        image("copy {\n    from = var.password\n    to = \"/\"\n  }"),
        image("test \"t\" { run = var.password }"),
        image("test \"t\" {\n    file \"/a\" { contains = var.password }\n  }"),
        image("for_each = { a = var.password }"),
        image("for_each = { (var.password) = 1 }"),
        HEAD.replace("\"p\"", "var.password"),
        format!("{HEAD}bases = {{ a = var.password }}\n"),
        image("").replace("\"sid\"", "var.password"),
        format!(
            "{HEAD}image \"i\" {{\n  version = \"1\"\n  dockerfile = \"D\"\n  args = {{ A = var.password }}\n}}\n"
        ),
        service("command = [var.password]"),
        service("listen = var.password"),
        service("replicas = length(var.password)"),
        service("egress = var.password == \"\""),
        service("probe \"ready\" { http = local.url }"),
        service("tmpfs \"/x\" { size = var.password }"),
        service("for_each = toset([var.password])"),
        format!(
            "{HEAD}variable \"v\" {{\n  default = 1\n  validation {{\n    condition = false\n    error_message = \"it is ${{var.password}}\"\n  }}\n}}\n"
        ),
        format!("{HEAD}variable \"v\" {{ description = var.password }}\n"),
    ];
    for text in cases {
        let errors = load(&source(text.clone()), &inputs("dev")).expect_err(&text);
        let shown = errors.to_string();
        assert!(shown.contains("ensitive"), "{text}\n{shown}");
        let leaks = shown
            .lines()
            .any(|line| line.contains("hunter2") && !line.contains("= \"hunter2\""));
        assert!(!leaks, "{text}\n{shown}");
    }
}
