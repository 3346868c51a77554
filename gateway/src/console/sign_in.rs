//! Signing in: the token once, as a form sends it, for a cookie that the browser then sends.

use super::pages::Page;
use super::token::Token;
use super::{BODY_WITHIN, Desk, respond};
use crate::http::{Body, BodyLimits, read_body};
use http::header::{LOCATION, SET_COOKIE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::time::Duration;

/// A form with a token in it, in bytes.
const FORM_BYTES_MAX: usize = 4 << 10;
/// Who guesses waits.
const WRONG_AFTER: Duration = Duration::from_millis(500);

impl Desk {
    pub(super) async fn sign_in(&self, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::POST {
            return respond(Page::text(StatusCode::METHOD_NOT_ALLOWED, "send the token as a form\n"));
        }
        let limits = BodyLimits { bytes_max: FORM_BYTES_MAX, within: BODY_WITHIN, cost: 1 };
        let Ok((form, _charge)) = read_body(request.into_body(), limits, &self.bodies).await else {
            return respond(Page::text(StatusCode::BAD_REQUEST, "the form did not come whole\n"));
        };
        let sent = token_in(&form);
        let right = self.token.as_ref().is_none_or(|token| token.is(sent.as_bytes()));
        let cookie = HeaderValue::from_str(&Token::cookie(&sent)).ok().filter(|_| right && !sent.contains([';', ',']));
        let Some(cookie) = cookie else {
            self.metrics.reject("console", "wrong_token");
            tokio::time::sleep(WRONG_AFTER).await;
            return respond(Page::text(StatusCode::UNAUTHORIZED, "that is not the token of [console] token_file\n"));
        };
        let mut response = respond(Page::text(StatusCode::SEE_OTHER, ""));
        response.headers_mut().insert(SET_COOKIE, cookie);
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("/video"));
        response
    }
}

/// The field `token` of a form (application/x-www-form-urlencoded).
fn token_in(form: &[u8]) -> String {
    let form = String::from_utf8_lossy(form);
    let value = form.split('&').find_map(|pair| pair.strip_prefix("token=")).unwrap_or_default();
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (byte, digits.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(encoded)) => {
                bytes.push(encoded);
                rest = &behind[2..];
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_a_form_is_what_was_typed() {
        assert_eq!(token_in(b"token=a%2Bb+c"), "a+b c");
        assert_eq!(token_in(b"x=1&token=%zz%4"), "%zz%4");
        assert_eq!(token_in(b"nothing"), "");
    }
}
