//! Dockerfiles, by table: what is read from them, how variables are replaced, what is refused and where.

use std::collections::BTreeMap;

use kiln_config::Source;
use kiln_config::dockerfile::{
    Action, BaseValues, Command, CopySource, Dockerfile, Healthcheck, Ignore, LintInputs,
    Variables, expand, expand_words,
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
        ("FROM scratch\nCOPY --from a b", "2:6", "has no value", 6),
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

/// The rules that `text` is warned of, each with its line.
fn lint(text: &str, args: &[(&str, &str)], target: Option<usize>) -> Vec<(&'static str, usize)> {
    let file = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let build_args = args
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let mut ignore = Ignore::default();
    ignore.add("left/").unwrap();
    let base = |name: &str| {
        (name == "own").then(|| BaseValues {
            env: vec!["OF_BASE=/x".to_owned()],
            has_shell: true,
        })
    };
    let warnings = file.lint(&LintInputs {
        build_args: &build_args,
        target,
        arch: "amd64",
        ignore: &ignore,
        base: Some(&base),
    });
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    warnings
        .iter()
        .filter_map(|warning| Some((warning.rule?, line(warning.span.start))))
        .collect()
}

#[test]
fn what_people_know_as_warnings_is_warned_of() {
    for (text, expected) in [
        ("FROM a AS Build", &[("StageNameCasing", 1)][..]),
        ("FROM a AS b", &[]),
        ("FROM a as b", &[("FromAsCasing", 1)]),
        ("FROM a As b", &[("FromAsCasing", 1)]),
        ("from a as b", &[]),
        ("from a AS b", &[("FromAsCasing", 1)]),
        ("From a as b", &[("ConsistentInstructionCasing", 1)]),
        ("FROM a AS b\nFROM a AS b", &[("DuplicateStageName", 2)]),
        ("FROM a AS context", &[("ReservedStageName", 1)]),
        (
            "FROM a\nFROM a\nrun x",
            &[("ConsistentInstructionCasing", 3)],
        ),
        // What is before the first FROM is not looked at.
        ("arg x=1\nFROM a", &[]),
        ("FROM a\nRUN x \\\n\n y", &[("NoEmptyContinuation", 3)]),
        ("FROM a\nCMD x", &[("JSONArgsRecommended", 2)]),
        ("FROM a\nENTRYPOINT x", &[("JSONArgsRecommended", 2)]),
        ("FROM a\nSHELL [\"s\"]\nCMD x", &[]),
        ("FROM own\nCMD x", &[]),
        (
            "FROM a\nCMD [\"x\"]\nCMD [\"y\"]",
            &[("MultipleInstructionsDisallowed", 2)],
        ),
        ("FROM a\nCMD [\"x\"]\nFROM a\nCMD [\"y\"]", &[]),
        ("FROM a\nENV x y", &[("LegacyKeyValueFormat", 2)]),
        ("FROM a\nLABEL \"a b\"=c", &[]),
        ("FROM a\nARG API_TOKEN", &[("SecretsUsedInArgOrEnv", 2)]),
        ("FROM a\nENV key=1", &[("SecretsUsedInArgOrEnv", 2)]),
        ("FROM a\nENV TOKEN_PUBLIC=1 monkey=2", &[]),
        ("FROM a\nMAINTAINER x", &[("MaintainerDeprecated", 2)]),
        ("# check=skip=JSONArgsRecommended\nFROM a\nCMD x", &[]),
        ("# check=skip=all\nFROM a as B\nCMD x", &[]),
        (
            "FROM a\nWORKDIR b\nWORKDIR c",
            &[("WorkdirRelativePath", 2)],
        ),
        ("FROM a AS s\nWORKDIR /b\nFROM s\nWORKDIR c", &[]),
        ("FROM a\nENV D=/d\nWORKDIR $D/x", &[]),
        (
            "FROM a\nEXPOSE 80/TCP 1:80 81/udp",
            &[("ExposeProtoCasing", 2), ("ExposeInvalidFormat", 2)],
        ),
        (
            "FROM --platform=linux/amd64 a",
            &[("FromPlatformFlagConstDisallowed", 1)],
        ),
        ("FROM --platform=linux/amd64 a AS for_amd64", &[]),
        (
            "FROM --platform=$TARGETPLATFORM a",
            &[("RedundantTargetPlatform", 1)],
        ),
        ("FROM --platform=$BUILDPLATFORM a", &[]),
    ] {
        assert_eq!(lint(text, &[], None), expected, "{text:?}");
    }
}

#[test]
fn variables_without_a_value_are_warned_of() {
    for (text, expected) in [
        ("FROM a\nCOPY $x /y", &[("UndefinedVar", 2)][..]),
        ("FROM a\nARG x\nCOPY $x /y", &[]),
        ("FROM a AS s\nARG x=1\nFROM s\nCOPY $x /y", &[]),
        // What another stage is told is not told to this one.
        (
            "FROM a AS s\nARG x=1\nFROM a\nCOPY $x /y",
            &[("UndefinedVar", 4)],
        ),
        ("FROM own\nCOPY $OF_BASE $PATH", &[]),
        ("FROM a\nCOPY <<E /y\n$x\nE", &[("UndefinedVar", 3)]),
        ("FROM a\nCOPY <<'E' /y\n$x\nE", &[]),
        ("FROM a\nRUN echo $x", &[]),
        (
            "FROM a\nRUN --mount=type=cache,target=$x true",
            &[("UndefinedVar", 2)],
        ),
        (
            "FROM $x",
            &[("InvalidDefaultArgInFrom", 1), ("UndefinedArgInFrom", 1)],
        ),
        ("ARG x=a\nFROM $x:1", &[]),
        ("ARG x\nFROM a:$x", &[("InvalidDefaultArgInFrom", 2)]),
        ("ARG x\nFROM a${x:+:$x}", &[]),
    ] {
        assert_eq!(lint(text, &[], None), expected, "{text:?}");
    }
    let text = "ARG x\nFROM a:$x";
    // With it or without it: a Dockerfile is to be one without arguments too.
    assert_eq!(
        lint(text, &[("x", "1")], None),
        [("InvalidDefaultArgInFrom", 2)]
    );
    // Of what is not baked only what the text alone says is told.
    let two = "FROM a AS One\nCMD x\nFROM a\nCMD y";
    assert_eq!(
        lint(two, &[], Some(1)),
        [("StageNameCasing", 1), ("JSONArgsRecommended", 4)]
    );
}

#[test]
fn experimental_warnings_have_to_be_asked_for() {
    let ignored = "FROM a\nCOPY ./left/x kept /y/\nCOPY --from=b left/ /z";
    let described = "# What it is\nARG x=1\n# it is another\nFROM a AS it\n# two are\n#\nARG b c\n# b is\nARG b c";
    for (text, expected) in [
        (ignored, None),
        (described, None),
        (ignored, Some(("CopyIgnoredFile", 3))),
        (described, Some(("InvalidDefinitionDescription", 2))),
    ] {
        let directive = match expected {
            Some((rule, _)) => format!("# check=skip=all;experimental={rule}\n"),
            None => String::new(),
        };
        let found = lint(&format!("{directive}{text}"), &[], None);
        assert_eq!(found, Vec::from_iter(expected), "{text:?}");
    }
}

#[test]
fn the_check_directive_may_be_replaced() {
    let source = |text: &str| Source {
        name: "Dockerfile".to_owned(),
        text: text.to_owned(),
    };
    let text = "# check=error=true\nFROM a as b";
    let refused = |file: Dockerfile| {
        let warnings = file.lint(&LintInputs {
            build_args: &BTreeMap::new(),
            target: None,
            arch: "amd64",
            ignore: &Ignore::default(),
            base: None,
        });
        file.refused_for(&warnings).is_some()
    };
    assert!(refused(Dockerfile::parse(source(text)).unwrap()));
    let skipped = Dockerfile::parse_checked(source(text), Some("skip=FromAsCasing;error=true"));
    assert!(!refused(skipped.unwrap()));
    let wrong = Dockerfile::parse_checked(source(text), Some("nothing"));
    assert!(wrong.unwrap_err().to_string().contains("no option"));
}

#[test]
fn a_stage_is_known_by_name_or_number_after_it() {
    let file = parse("FROM a AS Base\nFROM b\nFROM c").unwrap();
    assert_eq!(file.stage("BASE", 2), Some(0));
    assert_eq!(file.stage("1", 2), Some(1));
    assert_eq!(file.stage("base", 0), None);
    assert_eq!(file.stage("2", 2), None);
}
