//! Each function with the examples of Terraform's documentation.

use crate::language::{refused, worth};

#[test]
fn texts() {
    worth(
        "",
        &[
            ("chomp(\"hello\\r\\n\\n\")", "\"hello\""),
            ("endswith(\"hello world\", \"world\")", "true"),
            ("startswith(\"hello world\", \"world\")", "false"),
            (
                "\"  items: ${indent(2, \"[\\n  foo,\\n]\\n\")}\"",
                r#""  items: [\n    foo,\n  ]\n  ""#,
            ),
            (
                "join(\"-\", [\"foo\", \"bar\", \"baz\"])",
                "\"foo-bar-baz\"",
            ),
            ("join(\", \", [\"foo\"], [1, true])", "\"foo, 1, true\""),
            ("lower(\"АЛЛО!\")", "\"алло!\""),
            ("upper(\"hello\")", "\"HELLO\""),
            ("title(\"hello world\")", "\"Hello World\""),
            (
                "regex(\"[a-z]+\", \"53453453.345345aaabbbccc23454\")",
                "\"aaabbbccc\"",
            ),
            (
                "regex(\"(\\\\d\\\\d\\\\d\\\\d)-(\\\\d\\\\d)-(\\\\d\\\\d)\", \"2019-02-01\")",
                r#"["2019","02","01"]"#,
            ),
            (
                "regex(\"^(?:(?P<scheme>[^:/?#]+):)?(?://(?P<authority>[^/?#]*))?\", \"https://terraform.io/docs/\")",
                r#"{"authority":"terraform.io","scheme":"https"}"#,
            ),
            ("length(regexall(\"[a-z]+\", \"1234abcd5678efgh9\"))", "2"),
            ("regexall(\"[a-z]+\", \"123456789\")", "[]"),
            ("replace(\"1 + 2 + 3\", \"+\", \"-\")", "\"1 - 2 - 3\""),
            (
                "replace(\"hello world\", \"/w.*d/\", \"everybody\")",
                "\"hello everybody\"",
            ),
            ("replace(\"ab\", \"/(a)(b)/\", \"$2$1\")", "\"ba\""),
            (
                "regex_replace(\"hello world\", \"w(.*)d\", \"[$1]\")",
                "\"hello [orl]\"",
            ),
            (
                "templatestring(\"Hello, $${name}%%{ if loud }!%%{ endif }\", { name = \"Jodie\", loud = true })",
                "\"Hello, Jodie!\"",
            ),
            ("split(\",\", \"foo,bar,baz\")", r#"["foo","bar","baz"]"#),
            ("split(\",\", \"\")", r#"[""]"#),
            ("strcontains(\"hello world\", \"wor\")", "true"),
            ("strrev(\"☃hello\")", "\"olleh☃\""),
            ("substr(\"hello world\", 1, 4)", "\"ello\""),
            ("substr(\"🤔🤷\", 0, 1)", "\"🤔\""),
            ("substr(\"hello world\", -5, -1)", "\"world\""),
            ("substr(\"hello world\", 6, 10)", "\"world\""),
            ("trim(\"?!hello?!\", \"!?\")", "\"hello\""),
            ("trimprefix(\"helloworld\", \"hello\")", "\"world\""),
            ("trimsuffix(\"helloworld\", \"world\")", "\"hello\""),
            ("trimspace(\"  hello\\n\\n\")", "\"hello\""),
        ],
    );
    refused(
        "",
        &[
            (
                "upper([])",
                "[]",
                &["the argument `text` of `upper` is a list"],
            ),
            (
                "upper(\"a\", \"b\")",
                "\"b\"",
                &["wrong number of arguments", "write `upper(text)`"],
            ),
            (
                "substr(\"a\", 1)",
                "substr(\"a\", 1)",
                &["write `substr(text, offset, length)`"],
            ),
            ("substr(\"a\", 0.5, 1)", "0.5", &["a whole number", "floor"]),
            (
                "join(\"-\", [[]])",
                "[[]]",
                &["the argument `list` of `join`", "a list of strings"],
            ),
            (
                "regex(\"(\", \"\")",
                "\"(\"",
                &["regular expression", "unclosed group"],
            ),
            ("regex(\"a\", \"b\")", "\"b\"", &["does not match", "try("]),
            (
                "uper(\"a\")",
                "uper",
                &["there is no function `uper`", "write `upper`"],
            ),
            ("uuid()", "uuid", &["not supported", "uuidv5"]),
            ("provider::x::f()", "provider::x::f()", &["no providers"]),
        ],
    );
}

#[test]
fn formats() {
    worth(
        "",
        &[
            ("format(\"Hello, %s!\", \"Ander\")", "\"Hello, Ander!\""),
            (
                "format(\"There are %d lights\", 4)",
                "\"There are 4 lights\"",
            ),
            (
                "format(\"%05d|%-5s|%5s|%+d|% d\", 42, \"a\", \"b\", 1, 2)",
                "\"00042|a    |    b|+1| 2\"",
            ),
            ("format(\"%.2f %f\", 3.14159, 1)", "\"3.14 1.000000\""),
            ("format(\"%e %g\", 1500, 0.25)", "\"1.500000e+03 0.25\""),
            (
                "format(\"%x %X %o %b\", 255, 255, 8, 5)",
                "\"ff FF 10 101\"",
            ),
            (
                "format(\"%q %v %t\", \"a\\\"\", [1, \"b\"], true)",
                r#""\"a\\\"\" [1,\"b\"] true""#,
            ),
            ("format(\"%#v %v\", \"a\", null)", r#""\"a\" null""#),
            ("format(\"%[2]s %[1]s %%\", \"a\", \"b\")", "\"b a %\""),
            (
                "formatlist(\"Hello, %s!\", [\"Valentina\", \"Ander\"])",
                r#"["Hello, Valentina!","Hello, Ander!"]"#,
            ),
            (
                "formatlist(\"%s, %s!\", \"Salutations\", [\"A\", \"B\"])",
                r#"["Salutations, A!","Salutations, B!"]"#,
            ),
        ],
    );
    refused(
        "",
        &[
            ("format(\"%d\", \"x\")", "\"x\"", &["a number for `%d`"]),
            (
                "format(\"%s %s\", 1)",
                "\"%s %s\"",
                &["as many values as verbs"],
            ),
            ("format(\"%s\", 1, 2)", "2", &["no verb shows"]),
            ("format(\"%y\", 1)", "\"%y\"", &["the verb `%y`"]),
            (
                "format(\"%99999999d\", 1)",
                "\"%99999999d\"",
                &["a width above 1024"],
            ),
            (
                "formatlist(\"%s%s\", [1, 2], [1])",
                "[1]",
                &["lists of one length"],
            ),
        ],
    );
}

#[test]
fn numbers() {
    worth(
        "",
        &[
            (
                "[abs(-12.4), ceil(5.1), floor(4.9), signum(-13), signum(0)]",
                "[12.4,6,4,-1,0]",
            ),
            ("[max(12, 54, 3), min([12, 54, 3]...)]", "[54,3]"),
            ("[log(50, 10) > 1.69, log(16, 2)]", "[true,4]"),
            ("[pow(3, 2), pow(4, 0)]", "[9,1]"),
            (
                "[parseint(\"100\", 10), parseint(\"FF\", 16), parseint(\"-10\", 16), parseint(\"1011111011101111\", 2)]",
                "[100,255,-16,48879]",
            ),
            ("sum([10, 13, 6, 4.5])", "33.5"),
        ],
    );
    refused(
        "",
        &[
            ("parseint(\"12\", 2)", "\"12\"", &["base 2"]),
            ("parseint(\"1\", 99)", "99", &["a base from 2 to 36"]),
            ("sum([])", "[]", &["an empty list"]),
            ("sum([1, \"x\"])", "[1, \"x\"]", &["a list of numbers"]),
            ("pow(10, 400)", "400", &["no finite result"]),
            ("max()", "max()", &["write `max(number, numbers…)`"]),
            ("log(0, 2)", "0", &["above 0"]),
        ],
    );
}

#[test]
fn collections() {
    worth(
        "",
        &[
            (
                "[alltrue([\"true\", true]), alltrue([true, false]), alltrue([])]",
                "[true,false,true]",
            ),
            ("[anytrue([true, false]), anytrue([])]", "[true,false]"),
            (
                "chunklist([\"a\", \"b\", \"c\"], 2)",
                r#"[["a","b"],["c"]]"#,
            ),
            (
                "[coalesce(\"a\", \"b\"), coalesce(\"\", \"b\"), coalesce(null, 1)]",
                r#"["a","b",1]"#,
            ),
            ("coalescelist([], [\"c\", \"d\"])", r#"["c","d"]"#),
            (
                "compact([\"a\", \"\", \"b\", null, \"c\"])",
                r#"["a","b","c"]"#,
            ),
            (
                "concat([\"a\", \"\"], [\"b\", \"c\"])",
                r#"["a","","b","c"]"#,
            ),
            (
                "[contains([\"a\", \"b\"], \"a\"), contains([\"a\"], \"d\")]",
                "[true,false]",
            ),
            (
                "distinct([\"a\", \"b\", \"a\", 1, \"1\"])",
                r#"["a","b",1,"1"]"#,
            ),
            (
                "[element([\"a\", \"b\", \"c\"], 1), element([\"a\", \"b\", \"c\"], 3), element([1, 2], -1)]",
                r#"["b","a",2]"#,
            ),
            (
                "flatten([[\"a\", \"b\"], [], [[\"c\"]]])",
                r#"["a","b","c"]"#,
            ),
            ("index([\"a\", \"b\", \"c\"], \"b\")", "1"),
            ("keys({ c = 2, a = 1 })", r#"["a","c"]"#),
            ("values({ c = 2, a = 1 })", "[1,2]"),
            (
                "[length([]), length({ a = 1 }), length(\"👾🕹️\")]",
                "[0,1,2]",
            ),
            (
                "[lookup({ a = \"ay\" }, \"a\", \"what?\"), lookup({}, \"c\", \"what?\")]",
                r#"["ay","what?"]"#,
            ),
            (
                "matchkeys([\"i-1\", \"i-2\", \"i-3\"], [\"w\", \"e\", \"e\"], [\"e\"])",
                r#"["i-2","i-3"]"#,
            ),
            (
                "merge({ a = \"b\", c = \"d\" }, { c = \"z\" }, null)",
                r#"{"a":"b","c":"z"}"#,
            ),
            ("[one([]), one([1])]", "[null,1]"),
            (
                "[range(3), range(1, 4), range(1, 8, 2), range(4, 1), range(10, 5, -2)]",
                "[[0,1,2],[1,2,3],[1,3,5,7],[4,3,2],[10,8,6]]",
            ),
            ("reverse([1, 2, 3])", "[3,2,1]"),
            (
                "setintersection([\"a\", \"b\"], [\"b\", \"c\"], [\"b\", \"d\"])",
                r#"["b"]"#,
            ),
            (
                "setproduct([\"dev\", \"prod\"], [1, 2])",
                r#"[["dev",1],["dev",2],["prod",1],["prod",2]]"#,
            ),
            (
                "setsubtract([\"a\", \"b\", \"c\"], [\"a\", \"c\"])",
                r#"["b"]"#,
            ),
            (
                "setunion([\"b\", \"a\"], [\"b\", \"c\"], [10, 9, -1])",
                r#"[-1,9,10,"a","b","c"]"#,
            ),
            ("slice([\"a\", \"b\", \"c\", \"d\"], 1, 3)", r#"["b","c"]"#),
            ("sort([\"e\", \"d\", \"a\", \"x\"])", r#"["a","d","e","x"]"#),
            (
                "transpose({ a = [\"1\", \"2\"], b = [\"2\", \"3\"] })",
                r#"{"1":["a"],"2":["a","b"],"3":["b"]}"#,
            ),
            ("zipmap([\"a\", \"b\"], [1, 2])", r#"{"a":1,"b":2}"#),
            (
                "[tostring(1), tonumber(\"2\"), tobool(\"true\"), tolist([1]), toset([\"b\", \"a\", \"b\"]), tomap({ a = 1 }), tonumber(null)]",
                r#"["1",2,true,[1],["a","b"],{"a":1},null]"#,
            ),
        ],
    );
    refused(
        "",
        &[
            ("length(1)", "1", &["a list, a map or a string"]),
            ("lookup({ a = 1 }, \"c\")", "\"c\"", &["a key of the map"]),
            ("element([], 0)", "[]", &["an empty list"]),
            ("slice([1], 0, 2)", "2", &["from 0 to 1"]),
            ("one([1, 2])", "[1, 2]", &["a list of 2 items"]),
            ("zipmap([\"a\"], [])", "[]", &["of another length"]),
            ("range(2000)", "2000", &["at most 1024"]),
            ("range(1, 5, -1)", "-1", &["never arrives"]),
            ("merge({}, [])", "[]", &["a map"]),
            ("coalesce(\"\", null)", "\"\"", &["a value that is there"]),
            ("tonumber(\"x\")", "\"x\"", &["a number"]),
            (
                "concat([1], 2)",
                "2",
                &["the argument `lists` of `concat` is a number"],
            ),
            ("concat(1...)", "1", &["what `...` makes arguments of"]),
            (
                "setproduct(range(1000), range(1000), range(1000))",
                "range(1000)",
                &["too large"],
            ),
        ],
    );
}

#[test]
fn encodings_and_digests() {
    worth(
        "",
        &[
            (
                "[base64encode(\"Hello World\"), base64decode(\"SGVsbG8gV29ybGQ=\")]",
                r#"["SGVsbG8gV29ybGQ=","Hello World"]"#,
            ),
            (
                "jsonencode({ hello = \"world\", n = [1, 2.5, null, true], t = \"<&>\" })",
                r#""{\"hello\":\"world\",\"n\":[1,2.5,null,true],\"t\":\"\\u003c\\u0026\\u003e\"}""#,
            ),
            (
                "jsondecode(\"{\\\"hello\\\": [1, \\\"x\\\"]}\")",
                r#"{"hello":[1,"x"]}"#,
            ),
            (
                "[urlencode(\"Hello World!\"), urlencode(\"☃\"), urldecode(\"Hello+World%21\")]",
                r#"["Hello+World%21","%E2%98%83","Hello World!"]"#,
            ),
            (
                "csvdecode(\"a,b,c\\n1,\\\"2, 3\\\",4\\n\")",
                r#"[{"a":"1","b":"2, 3","c":"4"}]"#,
            ),
            (
                "yamlencode({ a = \"b\", c = [1, { d = \"e\", f = true }], g = { h = {} } })",
                r#""\"a\": \"b\"\n\"c\":\n- 1\n- \"d\": \"e\"\n  \"f\": true\n\"g\":\n  \"h\": {}\n""#,
            ),
            (
                "md5(\"hello world\")",
                "\"5eb63bbbe01eeed093cb22bb8f5acdc3\"",
            ),
            (
                "sha1(\"hello world\")",
                "\"2aae6c35c94fcfb415dbe95f408b9ce91ee846ed\"",
            ),
            (
                "sha256(\"hello world\")",
                "\"b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9\"",
            ),
            (
                "substr(sha512(\"hello world\"), 0, 16)",
                "\"309ecc489c12d6eb\"",
            ),
            (
                "base64sha256(\"hello world\")",
                "\"uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=\"",
            ),
            (
                "substr(base64sha512(\"hello world\"), 0, 16)",
                "\"MJ7MSJwS1utMxA9Q\"",
            ),
            (
                "uuidv5(\"dns\", \"www.terraform.io\")",
                "\"a5008fae-b28c-5ba5-96cd-82b4c53552d6\"",
            ),
            (
                "[filesha256(\"hello.txt\") == sha256(file(\"hello.txt\")), filebase64(\"binary\"), fileexists(\"x\")]",
                r#"[true,"/wA=",false]"#,
            ),
            (
                "[filemd5(\"hello.txt\") == md5(\"hello\\n\"), filesha1(\"hello.txt\") == sha1(\"hello\\n\"), filesha512(\"hello.txt\") == sha512(\"hello\\n\")]",
                "[true,true,true]",
            ),
            (
                "[basename(\"foo/bar/baz.txt\"), dirname(\"foo/bar/baz.txt\"), dirname(\"a\")]",
                r#"["baz.txt","foo/bar","."]"#,
            ),
        ],
    );
    refused(
        "",
        &[
            ("base64decode(\"!\")", "\"!\"", &["base64"]),
            ("jsondecode(\"{\")", "\"{\"", &["EOF"]),
            ("jsonencode(image.i)", "image.i", &["an image"]),
            ("urldecode(\"%4\")", "\"%4\"", &["two digits"]),
            (
                "csvdecode(\"a,b\\n1\")",
                "\"a,b\\n1\"",
                &["a row 2 with 1 fields instead of 2"],
            ),
            ("uuidv5(\"x\", \"y\")", "\"x\"", &["a UUID"]),
        ],
    );
}

#[test]
fn dates() {
    worth(
        "",
        &[
            (
                "formatdate(\"DD MMM YYYY hh:mm ZZZ\", \"2018-01-02T23:12:01Z\")",
                "\"02 Jan 2018 23:12 UTC\"",
            ),
            (
                "formatdate(\"EEEE, DD-MMM-YY hh:mm:ss ZZZ\", \"2018-01-02T23:12:01Z\")",
                "\"Tuesday, 02-Jan-18 23:12:01 UTC\"",
            ),
            (
                "formatdate(\"EEE, DD MMM YYYY hh:mm:ss ZZZ\", \"2018-01-02T23:12:01-08:00\")",
                "\"Tue, 02 Jan 2018 23:12:01 -0800\"",
            ),
            (
                "formatdate(\"MMM DD, YYYY\", \"2018-01-02T23:12:01Z\")",
                "\"Jan 02, 2018\"",
            ),
            (
                "formatdate(\"HH:mmaa\", \"2018-01-02T23:12:01Z\")",
                "\"11:12pm\"",
            ),
            (
                "formatdate(\"h'h'mm'''' Z ZZZZZ\", \"2018-01-02T23:12:01Z\")",
                "\"23h12' Z +00:00\"",
            ),
            (
                "timeadd(\"2017-11-22T00:00:00Z\", \"10m\")",
                "\"2017-11-22T00:10:00Z\"",
            ),
            (
                "timeadd(\"2016-02-28T23:00:00Z\", \"1h30m\")",
                "\"2016-02-29T00:30:00Z\"",
            ),
            (
                "timeadd(\"2017-01-01T00:00:00Z\", \"-1s\")",
                "\"2016-12-31T23:59:59Z\"",
            ),
            (
                "[timecmp(\"2017-11-22T00:00:00Z\", \"2017-11-22T01:00:00Z\"), timecmp(\"2017-11-22T01:00:00Z\", \"2017-11-22T00:00:00-01:00\")]",
                "[-1,0]",
            ),
            ("timestamp()", "\"2023-11-14T22:13:20Z\""),
        ],
    );
    refused(
        "",
        &[
            (
                "formatdate(\"X\", \"2018-01-02T23:12:01Z\")",
                "\"X\"",
                &["YYYY", "single quotes"],
            ),
            (
                "formatdate(\"D\", \"2018-02-30T23:12:01Z\")",
                "\"2018-02-30T23:12:01Z\"",
                &["RFC 3339"],
            ),
            (
                "timeadd(\"2018-01-02T23:12:01Z\", \"1 day\")",
                "\"1 day\"",
                &["a duration"],
            ),
        ],
    );
}

#[test]
fn yaml() {
    let decoded = [
        (r#"hello: world"#, r#"{"hello":"world"}"#),
        (r#"true"#, "true"),
        (
            r#"{a: &foo [1, 2, 3], b: *foo}"#,
            r#"{"a":[1,2,3],"b":[1,2,3]}"#,
        ),
        ("", "null"),
        ("# nothing\n", "null"),
        (
            "[~, null, 'null', '', yes, on, 2020-01-02, 1.5.2]",
            r#"[null,null,"null","","yes","on","2020-01-02","1.5.2"]"#,
        ),
        (
            "[1, -2, +3, 1.5, .5, 2., 1e3, 0x1f, 0o644, 0, 12e03]",
            "[1,-2,3,1.5,0.5,2,1000,31,420,0,12000]",
        ),
        (
            "[1:30, 12_a, 0x, 0o9, x-, .e1, 1e]",
            r#"["1:30","12_a","0x","0o9","x-",".e1","1e"]"#,
        ),
        (
            "a: |\n  one\n  two\nb: >-\n  three\n  four\n",
            r#"{"a":"one\ntwo\n","b":"three four"}"#,
        ),
        (
            "base: &b {x: 1, y: 2}\nall:\n  <<: *b\n  y: 3\n",
            r#"{"all":{"x":1,"y":3},"base":{"x":1,"y":2}}"#,
        ),
        (
            "- &a {x: 1}\n- &b {x: 2, z: 4}\n- <<: [*a, *b]\n",
            r#"[{"x":1},{"x":2,"z":4},{"x":1,"z":4}]"#,
        ),
        (
            "{1: a, true: b, &k c: d, e: *k}",
            r#"{"1":"a","c":"d","e":"c","true":"b"}"#,
        ),
        (
            "[!!str 1, !!int \"7\", !!float 3, !!bool 'true', !!null ~, ! 5, !!seq [], !!map {}]",
            r#"["1",7,3,true,null,"5",[],{}]"#,
        ),
        ("--- a\n...\n", "\"a\""),
        ("\u{feff}a: ☃", r#"{"a":"☃"}"#),
        (
            "? a\n: - b\n  - c: d\n    e:\n",
            r#"{"a":["b",{"c":"d","e":null}]}"#,
        ),
    ];
    let quoted = |text: &str| format!("yamldecode({})", serde_json::Value::from(text));
    for (text, json) in decoded {
        worth("", &[(&quoted(text), json)]);
    }
    // What it writes, it reads.
    worth(
        "",
        &[(
            "yamldecode(yamlencode({ a = [1, { b = \"0644\", c = null }], d = { e = \"x: y\", f = [] } }))",
            r#"{"a":[1,{"b":"0644","c":null}],"d":{"e":"x: y","f":[]}}"#,
        )],
    );
    let bomb = (1..30).fold("a0: &a0 [x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
        let last = format!("*a{}", n - 1);
        let row = [last.as_str(); 8].join(",");
        format!("{text}a{n}: &a{n} [{row}]\n")
    });
    let deep = "[".repeat(200);
    let wrong: [(&str, &[&str]); 16] = [
        (
            "{a: &foo [1, *foo, 3]}",
            &["an alias within", "line 1, column 14"],
        ),
        ("a: *none", &["line 1, column 4"]),
        ("a: 1\na: 2\n", &["a second `a`", "line 2"]),
        ("a\n---\nb\n", &["a second document", "line 2"]),
        ("mode: 0644", &["0644", "octal", "0o"]),
        ("1_000", &["1_000", "quote it"]),
        ("1_000.5", &["1_000.5", "quote it"]),
        ("-.inf", &["-.inf"]),
        ("9007199254740993", &["2^53"]),
        ("0xffffffffffffffffff", &["2^53"]),
        ("!Ref x", &["the tag `!Ref`"]),
        ("!!int x", &["no !!int"]),
        ("{[a]: b}", &["as a key"]),
        ("<<: 1", &["behind `<<`"]),
        (&deep, &["128"]),
        (&bomb, &["aliases for more than"]),
    ];
    for (text, words) in wrong {
        refused(
            "",
            &[(
                &quoted(text),
                &quoted(text)[11..quoted(text).len() - 1],
                words,
            )],
        );
    }
    refused("", &[("yamldecode(\"a: [1\")", "\"a: [1\"", &["line"])]);
}

#[test]
fn networks() {
    worth(
        "",
        &[
            (
                "[for other in [\"192.168.2.0/23\", \"192.168.4.1\", \"192.168.1.1\", \"192.0.0.0/8\", \"::1\"] : cidrcontains(\"192.168.2.0/20\", other)]",
                "[true,true,true,false,false]",
            ),
            ("cidrcontains(\"fe80::/48\", \"fe80::1\")", "true"),
            ("cidrcontains(\"0.0.0.0/0\", \"1.2.3.4\")", "true"),
            ("cidrhost(\"10.12.112.0/20\", 16)", "\"10.12.112.16\""),
            ("cidrhost(\"10.12.112.0/20\", 268)", "\"10.12.113.12\""),
            (
                "cidrhost(\"fd00:fd12:3456:7890:00a2::/72\", 34)",
                "\"fd00:fd12:3456:7890::22\"",
            ),
            ("cidrhost(\"10.0.0.0/8\", -1)", "\"10.255.255.255\""),
            (
                "cidrhost(\"::/0\", -1)",
                "\"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\"",
            ),
            ("cidrnetmask(\"172.16.0.0/12\")", "\"255.240.0.0\""),
            (
                "[cidrnetmask(\"0.0.0.0/0\"), cidrnetmask(\"1.2.3.4/32\")]",
                r#"["0.0.0.0","255.255.255.255"]"#,
            ),
            ("cidrsubnet(\"172.16.0.0/12\", 4, 2)", "\"172.18.0.0/16\""),
            ("cidrsubnet(\"10.1.2.0/24\", 4, 15)", "\"10.1.2.240/28\""),
            (
                "cidrsubnet(\"fd00:fd12:3456:7890::/56\", 16, 162)",
                "\"fd00:fd12:3456:7800:a200::/72\"",
            ),
            (
                "cidrsubnets(\"10.1.0.0/16\", 4, 4, 8, 4)",
                r#"["10.1.0.0/20","10.1.16.0/20","10.1.32.0/24","10.1.48.0/20"]"#,
            ),
            (
                "cidrsubnets(\"fd00:fd12:3456:7890::/56\", 16, 16, 16, 32)",
                r#"["fd00:fd12:3456:7800::/72","fd00:fd12:3456:7800:100::/72","fd00:fd12:3456:7800:200::/72","fd00:fd12:3456:7800:300::/88"]"#,
            ),
        ],
    );
    refused(
        "",
        &[
            (
                "cidrcontains(\"10.0.0.0/8\", \"x\")",
                "\"x\"",
                &["10.0.0.0/8"],
            ),
            ("cidrhost(\"10.0.0.0\", 1)", "\"10.0.0.0\"", &["10.0.0.0/8"]),
            (
                "cidrhost(\"10.0.0.0/33\", 1)",
                "\"10.0.0.0/33\"",
                &["length of the prefix"],
            ),
            ("cidrhost(\"10.0.0.0/30\", 4)", "4", &["2 bits"]),
            ("cidrhost(\"10.0.0.0/30\", -5)", "-5", &["2 bits"]),
            ("cidrnetmask(\"fd00::/8\")", "\"fd00::/8\"", &["IPv4"]),
            ("cidrsubnet(\"10.0.0.0/24\", 9, 0)", "9", &["from 0 to 8"]),
            ("cidrsubnet(\"10.0.0.0/24\", 2, 4)", "4", &["2 bits"]),
            (
                "cidrsubnets(\"10.0.0.0/24\", 1, 2, 1)",
                "1",
                &["does not fit"],
            ),
        ],
    );
}

#[test]
fn files_by_pattern() {
    worth(
        "",
        &[
            ("fileset(path.module, \"*.txt\")", r#"["hello.txt"]"#),
            (
                "fileset(\".\", \"**/*.{txt,tpl}\")",
                r#"["hello.txt","list.tpl","sub/deep/x.txt"]"#,
            ),
            ("fileset(\"./sub/\", \"**\")", r#"["deep/x.txt"]"#),
        ],
    );
    refused(
        "",
        &[
            ("fileset(\"none\", \"*\")", "\"none\"", &["no such folder"]),
            ("fileset(\".\", \"[a\")", "\"[a\"", &["close each"]),
            ("vault(\"a\", \"b\")", "vault", &["secret"]),
            ("isotime()", "isotime", &["formatdate"]),
            ("base64gzip(\"a\")", "base64gzip", &["compress"]),
        ],
    );
}
