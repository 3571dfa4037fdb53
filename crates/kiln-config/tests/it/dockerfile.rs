//! Dockerfiles, by table: what is read from them, how variables are replaced, what is refused and where.

use std::collections::BTreeMap;

use kiln_config::Source;
use kiln_config::dockerfile::{
    Action, Command, CopySource, Dockerfile, Healthcheck, Variables, expand, expand_words,
};

fn parse(text: &str) -> Result<Dockerfile, String> {
    let name = "Dockerfile".to_owned();
    let text = text.to_owned();
    Dockerfile::parse(Source { name, text }).map_err(|error| error.to_string())
}

fn action(text: &str) -> Action {
    let file = parse(&format!("FROM scratch\n{text}")).unwrap_or_else(|error| panic!("{error}"));
    file.stages[0].instructions[0].action.clone()
}

fn exec(words: &[&str]) -> Command {
    Command::Exec(words.iter().map(|word| (*word).to_owned()).collect())
}

fn shell(text: &str) -> Command {
    Command::Shell(text.to_owned())
}

fn run(text: &str) -> Command {
    match action(text) {
        Action::Run(run) => run.command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_are_joined_and_comments_inside_are_no_part() {
    for (text, command) in [
        ("RUN a", shell("a")),
        ("run a && \\\n    b", shell("a &&     b")),
        ("RUN a \\\n# no\n  # neither\n\n b", shell("a  b")),
        ("RUN a \\  \n b", shell("a  b")),
        ("RUN a\\\\\nRUN b", shell("a\\\\")),
        ("RUN echo '#' # stays", shell("echo '#' # stays")),
        ("  RUN\ta\r\n", shell("a")),
        ("RUN [\"a\", \"b c\"]", exec(&["a", "b c"])),
        ("RUN [ \"a\" ", shell("[ \"a\"")),
        ("RUN [ -f x ]", shell("[ -f x ]")),
    ] {
        assert_eq!(run(text), command, "{text:?}");
    }
    let backtick = "# escape=`\nFROM scratch\nRUN a `\n b\\\nRUN c";
    assert_eq!(parse(backtick).unwrap().stages[0].instructions.len(), 2);
    // A comment ends the directives.
    let late = "# a comment\n# escape=`\nFROM scratch\nRUN a \\\n b";
    assert_eq!(parse(late).unwrap().escape, '\\');
}

#[test]
fn heredocs_are_read_to_their_delimiter() {
    let Action::Run(run) = action("RUN <<EOF\na\n  b $x\nEOF\nRUN c") else {
        panic!("no RUN");
    };
    assert_eq!(run.heredocs[0].content.text, "a\n  b $x\n");
    assert!(run.heredocs[0].expand);
    let Action::Copy(copy) = action("COPY <<-\"one\" <<two /dir/\n\ta\n\tone\n b\ntwo") else {
        panic!("no COPY");
    };
    let [CopySource::Heredoc(one), CopySource::Heredoc(two)] = &copy.sources[..] else {
        panic!("{:?}", copy.sources);
    };
    assert_eq!(
        (one.name.as_str(), one.expand, one.chomped()),
        ("one", false, "a\n".into())
    );
    assert_eq!(
        (two.name.as_str(), two.expand, two.chomped()),
        ("two", true, " b\n".into())
    );
    assert_eq!(copy.to.text, "/dir/");
    // A here-string and a shift are the shell's.
    for text in ["RUN cat <<<word", "RUN echo $((1<<3))"] {
        let Action::Run(run) = action(text) else {
            panic!("no RUN");
        };
        assert!(run.heredocs.is_empty(), "{text}");
    }
}

#[test]
fn values_keep_what_is_quoted() {
    let pairs = |text: &str| match action(text) {
        Action::Env(pairs) | Action::Label(pairs) => pairs
            .into_iter()
            .map(|(name, value)| (name.text, value.text))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        pairs("ENV a=1 b=\"x y\" \\\n c=x\\ y"),
        [pair("a", "1"), pair("b", "\"x y\""), pair("c", "x\\ y")]
    );
    assert_eq!(pairs("ENV a b c"), [pair("a", "b c")]);
    assert_eq!(pairs("LABEL \"a b\"=c"), [pair("\"a b\"", "c")]);
}

#[test]
fn health_checks_have_goes_durations() {
    let found = action("HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=3 CMD curl x");
    assert_eq!(
        found,
        Action::Healthcheck(Healthcheck::Check {
            command: shell("curl x"),
            interval: 90_000_000_000,
            timeout: 1_500_000_000,
            start_period: 0,
            start_interval: 0,
            retries: 3,
        })
    );
    assert_eq!(
        action("HEALTHCHECK none"),
        Action::Healthcheck(Healthcheck::None)
    );
}

struct Known(BTreeMap<&'static str, &'static str>, Vec<String>);

impl Variables for Known {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|value| (*value).to_owned())
    }

    fn undefined(&mut self, name: &str) {
        self.1.push(name.to_owned());
    }
}

fn known() -> Known {
    let values = [
        ("a", "one"),
        ("empty", ""),
        ("path", "usr/local/bin/x.tar.gz"),
        ("two", "x y"),
    ];
    Known(values.into(), Vec::new())
}

#[test]
fn variables_are_replaced_with_every_modifier() {
    for (text, expected) in [
        ("$a", "one"),
        ("${a}x", "onex"),
        ("$ab", ""),
        ("\\$a", "$a"),
        ("'$a'", "$a"),
        ("\"$a\"", "one"),
        ("\"\\$a \\\" \\n\"", "$a \" \\n"),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("$.", "$."),
        ("${none:-x}", "x"),
        ("${empty:-x}", "x"),
        ("${empty-x}", ""),
        ("${none-x}", "x"),
        ("${a:-x}", "one"),
        ("${a:+x}", "x"),
        ("${empty:+x}", ""),
        ("${empty+x}", "x"),
        ("${none+x}", ""),
        ("${a:?no}", "one"),
        ("${none:-${a}s}", "ones"),
        ("${none:-\"a }b\"}", "a }b"),
        ("${path#*/}", "local/bin/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "usr/local/bin/x.tar"),
        ("${path%%.*}", "usr/local/bin/x"),
        ("${path%\\.gz}", "usr/local/bin/x.tar"),
        ("${path#nothing}", "usr/local/bin/x.tar.gz"),
        ("${path/l/L}", "usr/Local/bin/x.tar.gz"),
        ("${path//l/L}", "usr/LocaL/bin/x.tar.gz"),
        ("${path//\\//-}", "usr-local-bin-x.tar.gz"),
        ("${path/b?n/}", "usr/local//x.tar.gz"),
        ("${path/loc*/}", "usr/"),
        ("${path%l*}", "usr/loca"),
        ("${path%%l*}", "usr/"),
        ("${path#u?r}", "/local/bin/x.tar.gz"),
        ("${path/*/}", ""),
    ] {
        let found = expand(text, '\\', &mut known());
        assert_eq!(found.as_deref(), Ok(expected), "{text}");
    }
    for (text, said) in [
        ("${none:?is needed}", "is needed"),
        ("${none?}", "not allowed to be unset"),
        ("${a", "not closed"),
        ("${}", "name"),
        ("${a:x}", ":x"),
        ("${a@}", "@"),
        ("\"a", "double"),
        ("'a", "single"),
    ] {
        let error = expand(text, '\\', &mut known()).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    let deep = |depth: usize| "${none:-".repeat(depth) + "x" + &"}".repeat(depth);
    let found = expand(&deep(100), '\\', &mut known());
    assert_eq!(found.as_deref(), Ok("x"));
    let error = expand(&deep(100_000), '\\', &mut known()).unwrap_err();
    assert!(error.to_string().contains("opened 100 times"), "{error}");
    let mut variables = known();
    expand("$x ${a} ${y:-z} ${z#a}", '\\', &mut variables).unwrap();
    assert_eq!(variables.1, ["x", "z"], "what has a default is not missed");
}

#[test]
fn an_unquoted_variable_may_be_several_words_or_none() {
    let words = |text: &str| expand_words(text, '\\', &mut known()).unwrap();
    assert_eq!(
        words("80 $two \"$two\" $empty \"\""),
        ["80", "x", "y", "x y", ""]
    );
}

#[test]
fn what_is_wrong_is_shown_at_its_place() {
    for (text, place, said, carets) in [
        ("", "1:1", "no FROM", 1),
        ("RUN a", "1:1", "before the first FROM", 3),
        ("FROM scratch\nCOPPY a b", "2:1", "did you mean COPY", 5),
        ("FROM a b c", "1:6", "FROM IMAGE AS NAME", 5),
        ("FROM a AS 1x", "1:11", "name of a stage", 2),
        ("FROM scratch\nCOPY a", "2:6", "needs two", 1),
        ("FROM scratch\nCOPY --form=x a b", "2:6", "--from", 8),
        ("FROM scratch\nCOPY --from= a b", "2:6", "has no value", 7),
        (
            "FROM scratch\nRUN a \\\n && b\nENV x=1 \\\n  y",
            "5:3",
            "NAME=VALUE",
            1,
        ),
        ("FROM scratch\nRUN <<EOF\na\n", "2:1", "has no end", 3),
        ("FROM scratch\nSHELL /bin/sh", "2:7", "JSON", 7),
        ("FROM scratch\nONBUILD FROM x", "2:9", "ONBUILD", 6),
        (
            "FROM scratch\nHEALTHCHECK --interval=x CMD a",
            "2:24",
            "duration",
            1,
        ),
        ("FROM scratch\nCMD [\"a\", 1]", "2:5", "double quotes", 8),
        ("# escape=x\nFROM scratch", "1:10", "backtick", 1),
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            error.contains(&format!("Dockerfile:{place}\n")),
            "{text:?}: {error}"
        );
        assert!(error.contains(said), "{text:?}: {error}");
        let found = error.chars().filter(|c| *c == '^').count();
        assert_eq!(found, carets, "{text:?}: {error}");
    }
}

#[test]
fn what_people_know_as_warnings_is_warned_of() {
    for (text, rule) in [
        ("FROM a AS Build", Some("StageNameCasing")),
        ("FROM a as b", None),
        ("FROM a As b", Some("FromAsCasing")),
        ("FROM a AS b\nFROM a AS b", Some("DuplicateStageName")),
        ("FROM a\nFROM a\nrun x", Some("ConsistentInstructionCasing")),
        ("FROM a\nRUN x \\\n\n y", Some("NoEmptyContinuation")),
        ("FROM a\nCMD x", Some("JSONArgsRecommended")),
        (
            "FROM a\nCMD [\"x\"]\nCMD [\"y\"]",
            Some("MultipleInstructionsDisallowed"),
        ),
        ("FROM a\nENV x y", Some("LegacyKeyValueFormat")),
        ("FROM a\nARG API_TOKEN", Some("SecretsUsedInArgOrEnv")),
        ("FROM a\nENV TOKEN_PUBLIC=1 monkey=2", None),
        ("FROM a\nMAINTAINER x", Some("MaintainerDeprecated")),
        ("# check=skip=JSONArgsRecommended\nFROM a\nCMD x", None),
    ] {
        let warnings = parse(text).unwrap().warnings;
        let rules: Vec<_> = warnings.iter().filter_map(|warning| warning.rule).collect();
        assert_eq!(rules, rule.into_iter().collect::<Vec<_>>(), "{text:?}");
    }
}

#[test]
fn a_stage_is_known_by_name_or_number_after_it() {
    let file = parse("FROM a AS Base\nFROM b\nFROM c").unwrap();
    assert_eq!(file.stage("BASE", 2), Some(0));
    assert_eq!(file.stage("1", 2), Some(1));
    assert_eq!(file.stage("base", 0), None);
    assert_eq!(file.stage("2", 2), None);
}
