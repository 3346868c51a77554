//! The little XML that S3 speaks: one element's text from an answer, and the list of parts. Pure.

/// The text of the first element of this name; S3's answers have no attributes and no comments in what is asked for here.
pub fn text(answer: &[u8], name: &str) -> Option<String> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (_, rest) = answer.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(unescaped(text))
}

/// The body of CompleteMultipartUpload.
pub fn parts<'a>(etags: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (at, etag) in etags.enumerate() {
        let number = at + 1;
        out.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", escaped(etag)));
    }
    out + "</CompleteMultipartUpload>"
}

const ESCAPES: [(&str, &str); 6] =
    [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&apos;", "'"), ("&amp;", "&")];

fn unescaped(text: &str) -> String {
    // The ampersand last: what it gives is text.
    ESCAPES.iter().fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_found_and_what_is_none_is_not() {
        let answer =
            b"<?xml version=\"1.0\"?><Error><Code>NoSuchUpload</Code><Message>a &lt;b&gt; &amp;lt;</Message></Error>";
        assert_eq!(text(answer, "Code").as_deref(), Some("NoSuchUpload"));
        assert_eq!(text(answer, "Message").as_deref(), Some("a <b> &lt;"));
        assert_eq!(
            (text(answer, "UploadId"), text(b"<UploadId>x", "UploadId"), text(b"\xff", "Code")),
            (None, None, None)
        );
    }

    #[test]
    fn parts_are_numbered_from_one() {
        let body = parts(["\"a\"", "b"].into_iter());
        assert!(
            body.contains("<PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag></Part><Part><PartNumber>2<"),
            "{body}"
        );
    }
}
