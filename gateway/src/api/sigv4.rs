//! Signature Version 4: is this request signed by one of our access keys? Pure.
//!
//! The signature covers method, path, query, the headers it names and the body. It must name the host, `x-amz-date` and, if
//! there is one, `x-amz-target`, so that a signed request cannot be turned into another. Signatures in the query are not
//! taken.
//! Errors are AWS's own, in its words. The age of a signature is judged only by a clock that can be trusted.

use super::date::{format_basic, parse_basic};
use super::error::{ApiError, Kind};
use super::keys::Keys;
use crate::clock::Now;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST};
use ring::{digest, hmac};
use std::collections::HashSet;

/// How far the two clocks may be apart, in minutes.
const SKEW_MINUTES: u64 = 15;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// What requests for data streams are signed for.
pub const SERVICE: &str = "kinesis";
/// Most headers a signature may name: SDKs name about ten.
const SIGNED_HEADERS_MAX: usize = 64;
/// What stands for `host` in HTTP/2; the JavaScript SDK signs it under this name.
const AUTHORITY: &str = ":authority";

/// The parts of a request that a signature covers.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// Host of an HTTP/2 request, which has no such header.
    pub authority: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// A claim that has been read and whose key is known; it still has to be proved by the body.
#[derive(Debug)]
pub struct Claim<'a> {
    secret: &'a str,
    /// `20260101/eu-west-1/kinesis/aws4_request`
    scope: &'a str,
    date: &'a str,
    signed_headers: &'a str,
    signature: [u8; 32],
}

/// Reads the claim of a request before its body is looked at: wrong keys and old dates cost no more than their headers.
pub fn claim<'a>(request: &Signed<'a>, keys: &'a Keys, now: Now, service: &str) -> Result<Claim<'a>, ApiError> {
    let authorization = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(authorization) = authorization else {
        return Err(ApiError::new(Kind::MissingAuthenticationToken, "Missing Authentication Token"));
    };
    let parts = Authorization::parse(authorization);
    let date = request.headers.get("x-amz-date").and_then(|value| value.to_str().ok());
    let (Some(credential), Some(signature), Some(signed_headers), Some(date)) =
        (parts.credential, parts.signature, parts.signed_headers, date)
    else {
        return Err(incomplete(&parts, date.is_some(), authorization));
    };
    let (access_key, scope) = credential.split_once('/').unwrap_or((credential, ""));
    check_scope(scope, date, service)?;
    check_date(date, now)?;
    check_signed_headers(signed_headers, request.headers)?;
    let secret = keys.secret(access_key).ok_or_else(|| {
        ApiError::new(Kind::UnrecognizedClient, "The security token included in the request is invalid.")
    })?;
    let signature = from_hex(signature).ok_or_else(mismatch)?;
    Ok(Claim { secret, scope, date, signed_headers, signature })
}

impl Claim<'_> {
    /// Whether the key of the claim signed this request with this body. The comparison takes the same time for all.
    pub fn prove(&self, request: &Signed<'_>, body: &[u8]) -> Result<(), ApiError> {
        let canonical = canonical_request(request, self.signed_headers, body);
        let (date, scope) = (self.date, self.scope);
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let key = signing_key(self.secret, scope);
        hmac::verify(&key, to_sign.as_bytes(), &self.signature).map_err(|_| mismatch())
    }
}

#[derive(Default)]
struct Authorization<'a> {
    credential: Option<&'a str>,
    signature: Option<&'a str>,
    signed_headers: Option<&'a str>,
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Self {
        let mut parts = Authorization::default();
        let Some(fields) = header.strip_prefix(ALGORITHM) else { return parts };
        for field in fields.split([',', ' ']) {
            match field.split_once('=') {
                Some(("Credential", value)) => parts.credential = Some(value),
                Some(("Signature", value)) => parts.signature = Some(value),
                Some(("SignedHeaders", value)) => parts.signed_headers = Some(value),
                _ => {}
            }
        }
        parts
    }
}

fn incomplete(parts: &Authorization<'_>, dated: bool, authorization: &str) -> ApiError {
    let mut says = String::new();
    for (name, missing) in [
        ("Credential", parts.credential.is_none()),
        ("Signature", parts.signature.is_none()),
        ("SignedHeaders", parts.signed_headers.is_none()),
    ] {
        if missing {
            says += &format!("Authorization header requires '{name}' parameter. ");
        }
    }
    if !dated {
        says += "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ";
    }
    // The header itself is not echoed: whatever stands in it was meant to be secret.
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, authorization.as_bytes()));
    says += &format!("(Hashed with SHA-256 and encoded with Base64) Authorization={hash}");
    ApiError::new(Kind::IncompleteSignature, says)
}

fn mismatch() -> ApiError {
    invalid(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key \
         and signing method. Consult the service documentation for details.",
    )
}

fn invalid(says: impl Into<String>) -> ApiError {
    ApiError::new(Kind::InvalidSignature, says)
}

/// `date/region/service/aws4_request`; any region is ours.
fn check_scope(scope: &str, date: &str, wanted: &str) -> Result<(), ApiError> {
    let mut parts = scope.split('/');
    let (day, _region, service, end, more) = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
    if service != Some(wanted) {
        return Err(invalid(format!("Credential should be scoped to correct service: '{wanted}'. ")));
    }
    if end != Some("aws4_request") || more.is_some() {
        return Err(invalid("Credential should be scoped with a valid terminator: 'aws4_request'. "));
    }
    if day.is_none() || day != date.get(..8) {
        let day = day.unwrap_or_default();
        return Err(invalid(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{day}' != '{}', from '{date}'.",
            date.get(..8).unwrap_or(date)
        )));
    }
    Ok(())
}

fn check_date(date: &str, now: Now) -> Result<(), ApiError> {
    let Some(signed_s) = parse_basic(date) else {
        return Err(ApiError::new(
            Kind::IncompleteSignature,
            "Date must be in ISO-8601 'basic format'. See http://en.wikipedia.org/wiki/ISO_8601",
        ));
    };
    if !now.trusted {
        return Ok(());
    }
    let (now_s, skew_s) = (now.wall_ms / 1000, SKEW_MINUTES * 60);
    let here = format_basic(now_s);
    if signed_s + skew_s < now_s {
        let limit = format_basic(now_s - skew_s);
        return Err(invalid(format!(
            "Signature expired: {date} is now earlier than {limit} ({here} - {SKEW_MINUTES} min.)"
        )));
    }
    if signed_s > now_s + skew_s {
        let limit = format_basic(now_s + skew_s);
        return Err(invalid(format!(
            "Signature not yet current: {date} is still later than {limit} ({here} + {SKEW_MINUTES} min.)"
        )));
    }
    Ok(())
}

/// A name that is there twice would copy its value into the canonical request twice: who has no key yet could have a head
/// of 128 KiB become a text of gigabytes.
fn check_signed_headers(signed: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut names = HashSet::new();
    for name in signed.split(';') {
        if names.len() == SIGNED_HEADERS_MAX {
            return Err(invalid(format!("More than {SIGNED_HEADERS_MAX} 'SignedHeaders' in the AWS Authorization.")));
        }
        if !names.insert(name.to_ascii_lowercase()) {
            return Err(invalid("A 'SignedHeader' in the AWS Authorization is named twice."));
        }
    }
    let covers = |name: &str| signed.split(';').any(|covered| covered == name);
    let missing = if !covers("host") && !covers(AUTHORITY) {
        "'Host' or ':authority'"
    } else if !covers("x-amz-date") {
        "'X-Amz-Date'"
    } else if headers.contains_key("x-amz-target") && !covers("x-amz-target") {
        "'X-Amz-Target'"
    } else {
        return Ok(());
    };
    Err(invalid(format!("{missing} must be a 'SignedHeader' in the AWS Authorization.")))
}

fn canonical_request(request: &Signed<'_>, signed_headers: &str, body: &[u8]) -> String {
    let mut text =
        format!("{}\n{}\n{}\n", request.method, canonical_path(request.path), canonical_query(request.query));
    for name in signed_headers.split(';') {
        text.push_str(name);
        text.push(':');
        let values = request.headers.get_all(name);
        let mut some = false;
        for value in values {
            if some {
                text.push(',');
            }
            some = true;
            push_collapsed(&mut text, &String::from_utf8_lossy(value.as_bytes()));
        }
        if let (false, true, Some(authority)) = (some, name == HOST || name == AUTHORITY, request.authority) {
            text.push_str(authority);
        }
        text.push('\n');
    }
    text.push('\n');
    text.push_str(signed_headers);
    text.push('\n');
    text.push_str(&sha256_hex(body));
    text
}

/// A header value without spaces around it, and with one for many within.
fn push_collapsed(into: &mut String, value: &str) {
    for (at, word) in value.split(' ').filter(|word| !word.is_empty()).enumerate() {
        if at > 0 {
            into.push(' ');
        }
        into.push_str(word);
    }
}

/// Each segment encoded once more, as every service but S3 has it.
fn canonical_path(path: &str) -> String {
    if path.is_empty() {
        return "/".into();
    }
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte == b'/' { text.push('/') } else { push_encoded(&mut text, byte) }
    }
    text
}

fn canonical_query(query: Option<&str>) -> String {
    let mut pairs: Vec<_> = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

fn push_encoded(into: &mut String, byte: u8) {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => into.push(char::from(byte)),
        _ => into.push_str(&format!("%{byte:02X}")),
    }
}

fn signing_key(secret: &str, scope: &str) -> hmac::Key {
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    for part in scope.split('/') {
        key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
    }
    key
}

fn sha256_hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest::digest(&digest::SHA256, bytes).as_ref() {
        hex.push_str(&format!("{byte:02x}"));
    }
    hex
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::keys::AccessKey;
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const NOW_S: u64 = 1_798_761_600; // 20270101T000000Z

    fn now() -> Now {
        Now { mono_ms: 0, wall_ms: NOW_S * 1000, trusted: true }
    }

    fn keys() -> Keys {
        Keys::load(&[AccessKey { id: "AKID".into(), secret: "top/secret".into() }], None).unwrap()
    }

    /// Headers as a client with this key, secret and clock signs them.
    fn sign(id: &str, secret: &str, at_s: u64, body: &[u8]) -> HeaderMap {
        sign_as("host;x-amz-date;x-amz-target", id, secret, at_s, body)
    }

    fn sign_as(names: &str, id: &str, secret: &str, at_s: u64, body: &[u8]) -> HeaderMap {
        let date = format_basic(at_s);
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("127.0.0.1:4567"));
        headers.insert("x-amz-date", date.parse().unwrap());
        headers.insert("x-amz-target", HeaderValue::from_static("Kinesis_20131202.ListStreams"));
        let scope = format!("{}/eu-west-1/kinesis/aws4_request", &date[..8]);
        let canonical = canonical_request(&request(&headers), names, body);
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let tag = hmac::sign(&signing_key(secret, &scope), to_sign.as_bytes());
        let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let value = format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={hex}");
        headers.insert("authorization", value.parse().unwrap());
        headers
    }

    fn request(headers: &HeaderMap) -> Signed<'_> {
        Signed { method: "POST", path: "/", query: None, authority: None, headers }
    }

    fn check(headers: &HeaderMap, body: &[u8], now: Now) -> Result<(), (Kind, String)> {
        let keys = keys();
        let request = request(headers);
        claim(&request, &keys, now, SERVICE)
            .and_then(|claim| claim.prove(&request, body))
            .map_err(|error| (error.kind, error.says))
    }

    #[test]
    fn the_published_example_signs_as_published() {
        // AWS's SigV4 test suite, `get-vanilla`.
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("example.amazonaws.com"));
        headers.insert("x-amz-date", HeaderValue::from_static("20150830T123600Z"));
        let signed = Signed { method: "GET", path: "/", query: None, authority: None, headers: &headers };
        let canonical = canonical_request(&signed, "host;x-amz-date", b"");
        assert_eq!(
            sha256_hex(canonical.as_bytes()),
            "bb579772317eb040ac9ed261061d46c1f17a8133879d6129b6e1c25292927e63"
        );
        let scope = "20150830/us-east-1/service/aws4_request";
        let to_sign = format!("{ALGORITHM}\n20150830T123600Z\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let key = signing_key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", scope);
        let expected = from_hex("5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31").unwrap();
        assert!(hmac::verify(&key, to_sign.as_bytes(), &expected).is_ok());
    }

    #[test]
    fn a_signed_request_passes_and_a_changed_one_does_not() {
        let headers = sign("AKID", "top/secret", NOW_S, b"{}");
        assert_eq!(check(&headers, b"{}", now()), Ok(()));
        assert_eq!(check(&headers, b"{ }", now()).unwrap_err().0, Kind::InvalidSignature);
        let mut other = headers.clone();
        other.insert("x-amz-target", HeaderValue::from_static("Kinesis_20131202.DeleteStream"));
        let (kind, says) = check(&other, b"{}", now()).unwrap_err();
        assert_eq!(kind, Kind::InvalidSignature);
        assert!(says.starts_with("The request signature we calculated does not match"), "{says}");
    }

    #[test]
    fn unknown_keys_wrong_secrets_and_missing_parts_are_told_apart() {
        let unknown = check(&sign("OTHER", "top/secret", NOW_S, b""), b"", now()).unwrap_err();
        let says = "The security token included in the request is invalid.";
        assert_eq!(unknown, (Kind::UnrecognizedClient, says.into()));
        let wrong = check(&sign("AKID", "guess", NOW_S, b""), b"", now()).unwrap_err();
        assert_eq!(wrong.0, Kind::InvalidSignature);
        let none = check(&HeaderMap::new(), b"", now()).unwrap_err();
        assert_eq!(none, (Kind::MissingAuthenticationToken, "Missing Authentication Token".into()));
        let mut headers = sign("AKID", "top/secret", NOW_S, b"");
        headers.insert("authorization", HeaderValue::from_static("AWS4-HMAC-SHA256 Credential=AKID/x"));
        let (kind, says) = check(&headers, b"", now()).unwrap_err();
        assert_eq!(kind, Kind::IncompleteSignature);
        assert!(says.starts_with(
            "Authorization header requires 'Signature' parameter. Authorization header requires 'SignedHeaders' parameter. (Hashed"
        ));
    }

    #[test]
    fn a_signature_is_good_for_fifteen_minutes_by_a_trusted_clock_only() {
        for (signed_s, good) in [(NOW_S - 900, true), (NOW_S - 901, false), (NOW_S + 900, true), (NOW_S + 901, false)] {
            assert_eq!(check(&sign("AKID", "top/secret", signed_s, b""), b"", now()).is_ok(), good);
        }
        let (_, says) = check(&sign("AKID", "top/secret", NOW_S - 901, b""), b"", now()).unwrap_err();
        assert_eq!(
            says,
            "Signature expired: 20261231T234459Z is now earlier than 20261231T234500Z (20270101T000000Z - 15 min.)"
        );
        let unset = Now { mono_ms: 0, wall_ms: 1_000, trusted: false };
        assert!(check(&sign("AKID", "top/secret", NOW_S, b""), b"", unset).is_ok());
    }

    /// Fault: a header named again and again in `SignedHeaders` was copied again and again, before anything was proved.
    /// Cause: the names were not looked at. Fix: each once, and not more than 64.
    #[test]
    fn p6_a_header_is_signed_once_and_few_are() {
        let signs = |names: &str| {
            let mut headers = sign("AKID", "top/secret", NOW_S, b"");
            let value = headers["authorization"].to_str().unwrap();
            let value = value.replace("host;x-amz-date;x-amz-target", &format!("host;x-amz-date;x-amz-target;{names}"));
            headers.insert("authorization", value.parse().unwrap());
            let keys = keys();
            claim(&request(&headers), &keys, now(), SERVICE).map(|_| ()).map_err(|error| (error.kind, error.says))
        };
        let names = |count: usize| (0..count).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(";");
        assert_eq!(signs(&names(61)), Ok(()));
        assert_eq!(signs(&names(62)).unwrap_err().0, Kind::InvalidSignature);
        for twice in ["host", "HOST", "x-a;x-b;x-a", ";"] {
            let (kind, says) = signs(twice).unwrap_err();
            assert_eq!(kind, Kind::InvalidSignature);
            assert!(says.ends_with("is named twice."), "{says}");
        }
    }

    #[test]
    fn a_scope_is_of_the_day_of_the_date() {
        let mut headers = sign("AKID", "top/secret", NOW_S, b"");
        let value = headers["authorization"].to_str().unwrap().replace("AKID/20270101/", "AKID/20270102/");
        headers.insert("authorization", value.parse().unwrap());
        let (kind, says) = check(&headers, b"", now()).unwrap_err();
        assert_eq!(kind, Kind::InvalidSignature);
        assert!(says.starts_with("Date in Credential scope does not match YYYYMMDD"), "{says}");
    }

    // With the target left out of what is signed, a ListStreams that was overheard is a DeleteStream.
    #[test]
    fn what_makes_a_request_another_has_to_be_signed() {
        for (names, missing) in [
            ("host;x-amz-date", "'X-Amz-Target'"),
            ("host;x-amz-target", "'X-Amz-Date'"),
            ("x-amz-date;x-amz-target", "'Host' or ':authority'"),
        ] {
            let (kind, says) = check(&sign_as(names, "AKID", "top/secret", NOW_S, b""), b"", now()).unwrap_err();
            assert_eq!(kind, Kind::InvalidSignature);
            assert_eq!(says, format!("{missing} must be a 'SignedHeader' in the AWS Authorization."));
        }
    }

    proptest! {
        #[test]
        fn noise_in_the_header_is_refused_and_never_panics(noise in "[ -~]{0,200}", date in "[ -~]{0,20}") {
            let mut headers = sign("AKID", "top/secret", NOW_S, b"");
            headers.insert("authorization", noise.parse().unwrap());
            headers.insert("x-amz-date", date.parse().unwrap());
            prop_assert!(check(&headers, b"", now()).is_err());
        }
    }
}
