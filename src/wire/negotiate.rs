//! Which subprotocol a WebSocket speaks, and which credential came with the offer (RFC 6455 section 1.9).

use secrecy::SecretString;

/// The frames of this protocol as JSON text.
pub const JSON: &str = "tidegate.v1.json";

/// What was agreed on.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// The subprotocol to echo; a client that offers none gets none, and JSON.
    pub subprotocol: Option<&'static str>,
    /// The token of an offered `bearer.T`.
    pub bearer: Option<SecretString>,
}

/// Agrees on the first offered subprotocol that is spoken here; the error is a text for HTTP 400.
pub fn negotiate<'a>(offered: impl Iterator<Item = &'a str>) -> Result<Agreed, String> {
    let mut agreed = Agreed { subprotocol: None, bearer: None };
    let mut others = Vec::new();
    for name in offered.flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty()) {
        if let Some(token) = name.strip_prefix("bearer.") {
            agreed.bearer.get_or_insert_with(|| token.into());
        } else if name == JSON {
            agreed.subprotocol = Some(JSON);
        } else {
            others.push(name);
        }
    }
    if agreed.subprotocol.is_none() && (agreed.bearer.is_some() || !others.is_empty()) {
        return Err(format!(
            "None of the offered subprotocols is spoken at this endpoint; offer {JSON}, or none at all.\n"
        ));
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn the_offer_decides() {
        let cases = [
            ([].as_slice(), Some((None, None))),
            (&["tidegate.v1.json"], Some((Some(JSON), None))),
            (&["mqtt, tidegate.v1.json"], Some((Some(JSON), None))),
            (&["mqtt", "tidegate.v1.json"], Some((Some(JSON), None))),
            (&["bearer.abc, tidegate.v1.json"], Some((Some(JSON), Some("abc")))),
            (&["tidegate.v1.json", "bearer.abc", "bearer.def"], Some((Some(JSON), Some("abc")))),
            (&["bearer.abc"], None),
            (&["mqtt"], None),
            (&["tidegate.v2.json"], None),
            (&["TIDEGATE.V1.JSON"], None),
        ];
        for (offer, expected) in cases {
            let agreed = negotiate(offer.iter().copied());
            let short = agreed
                .as_ref()
                .ok()
                .map(|agreed| (agreed.subprotocol, agreed.bearer.as_ref().map(ExposeSecret::expose_secret)));
            assert_eq!(short, expected, "{offer:?}");
            if let Err(text) = agreed {
                assert!(text.contains(JSON) && !text.contains("abc"), "{text}");
            }
        }
    }
}
