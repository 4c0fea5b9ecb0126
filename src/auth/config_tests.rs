//! What may stand in `[auth]`.

use super::*;

const TOKEN: &str = "hash = \"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"";
const USER: &str =
    "hash = \"$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Yk0Wo0MbYfkmGqUMjEbkUYz4RlPLWNVHqHGxiU9cGfM\"";
const SECRET: &str = "hunter-31415-hunter-31415-hunter-31415";

fn read(text: &str) -> Result<Config, String> {
    let config: Config = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    config.check().map(|()| config)
}

#[test]
fn whoever_sets_nothing_up_lets_everybody_in_and_whoever_does_nobody_without_a_credential() {
    let user = format!("[users.anna]\n{USER}");
    for (text, has_sources, lets_anonymous_in) in [
        ("", false, true),
        ("anonymous = true", false, true),
        (&user, true, false),
        (&format!("anonymous = true\n{user}"), true, true),
        (&format!("anonymous = false\n{user}"), true, false),
        ("[certificate]", true, false),
        ("[hook]\nurl = \"http://localhost/\"", true, false),
        (&format!("[tokens.backend]\n{TOKEN}"), true, false),
        (&format!("[jwt]\nalgorithms = [\"HS256\"]\nsecret = \"{SECRET}\""), true, false),
    ] {
        let config = read(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!((config.has_sources(), config.lets_anonymous_in()), (has_sources, lets_anonymous_in), "{text}");
    }
    let refusal = read("anonymous = false").unwrap_err();
    assert!(refusal.contains("nobody could come in") && refusal.contains("[auth.jwt]"), "{refusal}");
}

#[test]
fn a_text_may_stand_for_a_list_of_one() {
    let jwt = |line: &str| {
        let text = format!("[jwt]\nalgorithms = [\"HS256\"]\nsecret = \"{SECRET}\"\n{line}");
        read(&text).map(|config| config.jwt.expect("there is one"))
    };
    for (line, expected) in [("", &[][..]), ("audience = \"a\"", &["a"]), ("audience = [\"a\", \"b\"]", &["a", "b"])] {
        assert_eq!(jwt(line).unwrap().audience, expected, "{line}");
    }
    assert!(jwt("issuer = 7").unwrap_err().contains("a text, or a list of texts"));
    for (line, leeway) in
        [("", 5.0), ("leeway = 0", 0.0), ("leeway = 0.0", 0.0), ("leeway = 2.5", 2.5), ("leeway = 30", 30.0)]
    {
        assert_eq!(jwt(line).unwrap().leeway.as_secs_f64(), leeway, "{line}");
    }
    for line in ["leeway = -1", "leeway = 0.0001", "leeway = 31536001", "leeway = \"5\"", "leeway = nan"] {
        assert!(jwt(line).unwrap_err().contains("from 0.001 to 31536000"), "{line}");
    }
}

#[test]
fn a_mistake_is_told_what_would_be_right() {
    let jwt = |lines: &str| format!("[jwt]\n{lines}");
    let hs = format!("secret = \"{SECRET}\"");
    let (jwks, file) = ("jwks_url = \"https://id.example/keys\"", "public_key_file = \"issuer.pem\"");
    let token = |lines: &str| format!("[tokens.backend]\n{lines}");
    let user = |lines: &str| format!("[users.anna]\n{lines}");
    let hook = |lines: &str| format!("[hook]\n{lines}");
    let name = "n".repeat(257);
    for (text, excerpt) in [
        ("anonymus = true".to_owned(), "unknown field `anonymus`"),
        ("max_token = 0".to_owned(), "a whole number, at least 1"),
        ("max_password_checks = 0".to_owned(), "a whole number, at least 1"),
        ("anonymous_roles = [\"\"]".to_owned(), "auth.anonymous_roles: \"\" is no name"),
        ("cookie = \"a b\"".to_owned(), "auth.cookie is \"a b\""),
        ("cookie = \"\"".to_owned(), "auth.cookie is \"\""),
        // Where the keys come from.
        (jwt("algorithms = [\"HS256\"]"), "takes its keys from one place"),
        (jwt(&format!("algorithms = [\"HS256\"]\n{hs}\n{file}")), "takes its keys from one place"),
        (jwt(&format!("algorithms = [\"RS256\"]\n{jwks}\n{file}")), "takes its keys from one place"),
        (jwt(&format!("algorithms = [\"RS256\"]\n{jwks}\n{hs}")), "takes its keys from one place"),
        // Algorithms.
        (jwt(&hs), "auth.jwt.algorithms is empty"),
        (jwt(&format!("algorithms = [\"none\"]\n{hs}")), "unknown variant `none`, expected one of `HS256`, `HS384`"),
        (jwt(&format!("algorithms = [\"hs256\"]\n{hs}")), "unknown variant `hs256`"),
        (jwt(&format!("algorithms = [\"HS256\"]\n{file}")), "has HS256, which needs auth.jwt.secret_file"),
        (jwt(&format!("algorithms = [\"RS256\", \"HS512\"]\n{jwks}")), "has HS512, which needs auth.jwt.secret_file"),
        (jwt(&format!("algorithms = [\"HS256\", \"RS256\"]\n{hs}")), "has RS256, which needs a public key"),
        // Where keys and credentials go.
        (jwt("algorithms = [\"RS256\"]\njwks_url = \"http://id.example/\""), "auth.jwt.jwks_url is http://id.example/"),
        (jwt("algorithms = [\"RS256\"]\njwks_url = \"https://ann:hunter2@id.example/\""), "don't belong in a URL"),
        (jwt(&format!("algorithms = [\"RS256\"]\n{file}\njwks_ca_file = \"ca.pem\"")), "jwks_ca_file has no use"),
        (
            jwt("algorithms = [\"RS256\"]\njwks_url = \"http://[::1]/\"\njwks_ca_file = \"ca.pem\""),
            "jwks_ca_file has no use",
        ),
        (jwt(&format!("algorithms = [\"RS256\"]\n{jwks}\njwks_refresh = 5")), "longer than auth.jwt.jwks_refresh"),
        (jwt(&format!("algorithms = [\"RS256\"]\n{jwks}\nuser_claim = \"\"")), "auth.jwt.user_claim"),
        (hook(""), "set auth.hook.url"),
        (hook("url = \"http://auth:9000/\""), "auth.hook.url is http://auth:9000/"),
        (hook("url = \"http://localhost/\"\nca_file = \"ca.pem\""), "auth.hook.ca_file has no use"),
        (hook("url = \"http://localhost/\"\nsecret = \"hunter 2\""), "auth.hook.secret goes into a header"),
        (hook("url = \"http://localhost/\"\nmax_cached = 0"), "a whole number, at least 1"),
        (hook("url = \"http://localhost/\"\ntimeout = 0"), "from 0.001"),
        // Tokens and users.
        (token(""), "auth.tokens.backend has no hash: `tidegate hash token` makes one"),
        (token("hash = \"hunter2\""), "auth.tokens.backend.hash is no hash of a token"),
        (token(&format!("{TOKEN}\nuser = \"\"")), "auth.tokens.backend.user: \"\" is no name"),
        (token(&format!("{TOKEN}\nroles = [\"a\\nb\"]")), "auth.tokens.backend.roles"),
        (token(&format!("{TOKEN}\nclaims = {{ at = 1.5 }}")), "auth.tokens.backend.claims: \"at\" is to be a text"),
        (token(&format!("{TOKEN}\nclaims = {{ all = [] }}")), "auth.tokens.backend.claims: \"all\""),
        (token(&format!("{TOKEN}\nclaims = {{ all = [\"a\", true] }}")), "auth.tokens.backend.claims: \"all\""),
        (token(&format!("{TOKEN}\nexpires = -1")), "invalid value: integer `-1`"),
        (format!("[tokens.a]\n{TOKEN}\n[tokens.b]\n{TOKEN}"), "auth.tokens.b.hash is that of another token too"),
        (format!("[tokens.\"{name}\"]\n{TOKEN}"), "is no name"),
        (user(""), "auth.users.anna has no hash: `tidegate hash password` makes one"),
        (user(TOKEN), "auth.users.anna.hash is no hash of a password"),
        (user(&format!("{USER}\ngroups = [\"\"]")), "auth.users.anna.groups"),
        (user(&USER.replace("m=19456", "m=1048577")), "auth.users.anna.hash takes 2 passes over 1048577 KiB"),
        ("[certificate]\nuser = \"dn\"".to_owned(), "expected one of `cn`, `san-dns`, `san-email`, `san-uri`"),
        ("[certificate]\nroles = [\"\"]".to_owned(), "auth.certificate.roles"),
    ] {
        let refusal = read(&text).err().unwrap_or_else(|| panic!("taken: {text}"));
        assert!(refusal.contains(excerpt), "{text}: {refusal}");
        assert!(!refusal.contains("hunter") && !refusal.contains("sha256:b"), "{text}: {refusal}");
    }
}

#[test]
fn what_is_right_is_taken() {
    let longest = "n".repeat(256);
    for text in [
        format!("[jwt]\nalgorithms = [\"HS256\", \"HS384\", \"HS512\"]\nsecret = \"{}\"", "s".repeat(64)),
        "[jwt]\nalgorithms = [\"RS256\", \"PS512\", \"ES512\", \"EdDSA\"]\npublic_key_file = \"issuer.pem\"".to_owned(),
        "[jwt]\nalgorithms = [\"ES256\"]\njwks_url = \"http://127.0.0.1:8000/keys\"".to_owned(),
        "[jwt]\nalgorithms = [\"ES256\"]\njwks_url = \"http://id/keys\"\njwks_insecure = true".to_owned(),
        "[jwt]\nalgorithms = [\"ES256\"]\njwks_url = \"https://id/keys\"\njwks_ca_file = \"ca.pem\"".to_owned(),
        "[hook]\nurl = \"http://auth:9000/\"\ninsecure = true\ncache = 0".to_owned(),
        format!("[tokens.\"{longest}\"]\n{TOKEN}\nclaims = {{ site = \"north\", lines = [1, \"b\"] }}"),
        format!("[users.anna]\n{USER}\nroles = [\"operator\"]"),
        "cookie = \"tidegate_token\"\nquery_token = true\nnarrow = true\nrevocations = \"revocations.json\"".to_owned(),
    ] {
        let config = read(&text).unwrap_or_else(|why| panic!("{text}: {why}"));
        let written = toml::to_string(&config).expect("TOML");
        toml::from_str::<Config>(&written).unwrap_or_else(|why| panic!("written as {written}: {why}"));
    }
}

#[test]
fn secrets_and_hashes_are_never_shown() {
    let text = format!(
        "[jwt]\nalgorithms = [\"HS256\"]\nsecret = \"{SECRET}\"\n[hook]\nurl = \"http://localhost/\"\nsecret = \"{SECRET}\"\n\
         [tokens.backend]\n{TOKEN}\n[users.anna]\n{USER}"
    );
    let config = read(&text).expect("right");
    for shown in [toml::to_string(&config).expect("TOML"), format!("{config:?}"), format!("{config:#?}")] {
        for secret in [SECRET, "sha256:b", "ba7816bf", "$argon2id"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
    assert_eq!(toml::to_string(&config).expect("TOML").matches("= \"***\"").count(), 4);
}
