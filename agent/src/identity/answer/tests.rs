use super::*;

const GOOD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>arn:aws:iam::111122223333:user/alice</Arn>
    <UserId>AIDAALICEALICEALICE1</UserId>
    <Account>111122223333</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata>
    <RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>
  </ResponseMetadata>
</GetCallerIdentityResponse>
"#;

const ASSUMED: &str = r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>ASIAX</AccessKeyId><SecretAccessKey>canary&amp;x</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2026-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser><AssumedRoleId>AROA:b</AssumedRoleId><Arn>arn:aws:sts::111122223333:assumed-role/attest/b</Arn></AssumedRoleUser><PackedPolicySize>6</PackedPolicySize></AssumeRoleResult><ResponseMetadata><RequestId>r-2</RequestId></ResponseMetadata></AssumeRoleResponse>"#;

fn refused(body: &str) -> AnswerFault {
    identity(body.as_bytes()).unwrap_err()
}

#[test]
fn a_genuine_answer_is_read() {
    let read = identity(GOOD.as_bytes()).unwrap();
    assert_eq!(read.account, "111122223333");
    assert_eq!(read.user_id, "AIDAALICEALICEALICE1");
    assert_eq!(read.arn, "arn:aws:iam::111122223333:user/alice");
    assert_eq!(read.request_id, "01234567-89ab-cdef-0123-456789abcdef");
    // Without declaration and white space, as AWS sends it too.
    let compact: String = GOOD.lines().skip(1).map(str::trim).collect();
    assert_eq!(identity(compact.as_bytes()).unwrap(), read);
    // An unknown element beside the known ones is no harm.
    let more = GOOD.replace("</Account>", "</Account><New>x</New>");
    assert_eq!(identity(more.as_bytes()).unwrap(), read);
}

#[test]
fn an_assumed_role_answer_gives_its_echo_and_nothing_of_the_credentials() {
    let read = attested(ASSUMED.as_bytes()).unwrap();
    assert_eq!(read.arn, "arn:aws:sts::111122223333:assumed-role/attest/b");
    assert_eq!(read.request_id, "r-2");
    assert!(!format!("{read:?}").contains("canary"));
}

#[test]
fn an_error_gives_its_code() {
    let body = r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: x &quot;y&quot; is not authorized</Message></Error><RequestId>r</RequestId></ErrorResponse>"#;
    assert_eq!(error_code(body.as_bytes()).unwrap(), "AccessDenied");
    assert!(identity(body.as_bytes()).is_err());
}

#[test]
fn doubled_elements_are_refused() {
    let body = GOOD.replace("<Account>", "<Account>999999999999</Account><Account>");
    let fault = AnswerFault::Count {
        path: "GetCallerIdentityResult/Account",
        count: 2,
    };
    assert_eq!(refused(&body), fault);
    let whole: String = GOOD.lines().skip(2).take(5).collect::<Vec<_>>().join("\n");
    let body = GOOD.replace(
        "  <ResponseMetadata>",
        &format!("{whole}<ResponseMetadata>"),
    );
    assert!(matches!(
        refused(&body),
        AnswerFault::Count { count: 2, .. }
    ));
}

#[test]
fn an_absent_element_or_one_elsewhere_is_refused() {
    let body = GOOD.replace("<Arn>arn:aws:iam::111122223333:user/alice</Arn>", "");
    assert!(matches!(
        refused(&body),
        AnswerFault::Count { count: 0, .. }
    ));
    let nested = GOOD
        .replace("<Arn>", "<Inner><Arn>")
        .replace("</Arn>", "</Arn></Inner>");
    assert!(matches!(
        refused(&nested),
        AnswerFault::Count { count: 0, .. }
    ));
}

#[test]
fn another_root_or_namespace_is_refused() {
    let root = AnswerFault::Root("GetCallerIdentityResponse");
    assert_eq!(refused(ASSUMED), root);
    assert_eq!(refused(&GOOD.replace("2011-06-15", "2011-06-16")), root);
    assert_eq!(refused(&GOOD.replace(" xmlns=", " xmlns:a=")), root);
    assert_eq!(refused(&GOOD.replace(" xmlns=", " a=\"b\" xmlns=")), root);
    assert!(matches!(
        refused(&GOOD.replace("<Account>", "<Account xmlns=\"x\">")),
        AnswerFault::Unexpected("an attribute")
    ));
    let prefixed = GOOD.replace("Account>", "a:Account>");
    assert_eq!(
        refused(&prefixed),
        AnswerFault::Unexpected("a namespace prefix")
    );
}

#[test]
fn a_document_type_or_an_entity_is_refused() {
    let dtd = GOOD.replace(
        "<GetCallerIdentityResponse",
        "<!DOCTYPE x [<!ENTITY a \"111122223333\">]>\n<GetCallerIdentityResponse",
    );
    assert_eq!(refused(&dtd), AnswerFault::Unexpected("a document type"));
    let entity = GOOD.replace("<Account>111122223333", "<Account>&a;");
    assert_eq!(refused(&entity), AnswerFault::Unexpected("an entity"));
    for reference in ["&amp;", "&#49;"] {
        let body = GOOD.replace("<Account>1", &format!("<Account>{reference}1"));
        assert_eq!(
            refused(&body),
            AnswerFault::Value("GetCallerIdentityResult/Account")
        );
    }
}

#[test]
fn trailing_data_is_refused() {
    for tail in ["x", "<a/>", "{}", "<!-- -->", "<?x?>", "&amp;"] {
        assert!(
            identity(format!("{GOOD}{tail}").as_bytes()).is_err(),
            "{tail}"
        );
    }
    assert!(identity(format!("{GOOD}\n\n").as_bytes()).is_ok());
    assert!(identity(format!("x{GOOD}").as_bytes()).is_err());
}

#[test]
fn what_is_not_the_document_at_all_is_refused() {
    for body in [
        "",
        " ",
        "<html><body>Service Unavailable</body></html>",
        r#"{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"111122223333"}}}"#,
        &format!("{{\"a\":\"{}\"}}", GOOD.replace('"', "\\\"")),
        &GOOD[..GOOD.len() / 2],
        &GOOD.replace("</Arn>", "</UserId>"),
        &GOOD.replace("<Account>", "<![CDATA[<Account>]]><Account>"),
        &GOOD.replace("<Account>", "<!-- <Account>1</Account> --><Account>"),
        &GOOD.replace("<Account>", "<Account><b/>"),
        &GOOD.replace("alice", "al ice"),
        &GOOD.replace("alice", "al\u{1}ice"),
        &GOOD.replace("alice", &"a".repeat(3000)),
        &format!("{}{}", "<a>".repeat(10_000), "</a>".repeat(10_000)),
    ] {
        assert!(identity(body.as_bytes()).is_err(), "{body:.100}");
    }
    assert!(identity(b"\xff\xfe<\0G\0").is_err());
}

proptest::proptest! {
    #[test]
    fn no_change_of_an_answer_panics(at in 0..GOOD.len(), byte: u8) {
        let mut body = GOOD.as_bytes().to_vec();
        body[at] = byte;
        let _ = identity(&body);
    }
}
