//! Answers in the shapes of AWS's three protocols: query (STS, IAM), ec2, and JSON 1.1 (SSM, EC2 Instance Connect).

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::service::{Protocol, Service};

/// What a service answers when it does.
pub(crate) enum Output {
    /// The children of the result element; `None` for actions that answer nothing.
    Xml(Option<Vec<Element>>),
    Json(Value),
}

/// An XML element: a text or children.
pub(crate) struct Element {
    name: &'static str,
    content: Content,
}

enum Content {
    Text(String),
    Children(Vec<Element>),
}

/// An element with a text.
pub(crate) fn text(name: &'static str, value: impl Into<String>) -> Element {
    Element {
        name,
        content: Content::Text(value.into()),
    }
}

/// An element with children.
pub(crate) fn node(name: &'static str, children: Vec<Element>) -> Element {
    Element {
        name,
        content: Content::Children(children),
    }
}

/// A finished HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) location: Option<String>,
    pub(crate) body: String,
}

/// Who asks for what in which form: enough to shape the answer.
pub(crate) struct Asked<'a> {
    pub(crate) service: Service,
    pub(crate) action: &'a str,
    pub(crate) request_id: &'a str,
    /// The query services answer in JSON to who accepts only that.
    pub(crate) wants_json: bool,
}

impl Asked<'_> {
    pub(crate) fn answer(&self, result: Result<Output, ApiError>) -> Answer {
        match (result, self.service.protocol()) {
            (Ok(Output::Json(value)), _) => json_answer(200, value.to_string()),
            (Ok(Output::Xml(result)), Protocol::Ec2) => self.ec2(result),
            (Ok(Output::Xml(result)), Protocol::Query { namespace, .. }) => {
                self.query(result, namespace)
            }
            // No JSON service answers XML; were one to, an empty object is what it says.
            (Ok(Output::Xml(_)), Protocol::Json { .. }) => json_answer(200, "{}".to_owned()),
            (Err(error), Protocol::Ec2) => self.ec2_error(&error),
            (Err(error), Protocol::Query { namespace, .. }) => self.query_error(&error, namespace),
            (Err(error), Protocol::Json { .. }) => {
                let body = json!({"__type": error.code, "message": error.message, "Message": error.message});
                json_answer(error.status, body.to_string())
            }
        }
    }

    fn query(&self, result: Option<Vec<Element>>, namespace: &str) -> Answer {
        let name = format!("{}Response", self.action);
        let metadata = node(
            "ResponseMetadata",
            vec![text("RequestId", self.request_id.to_owned())],
        );
        if self.wants_json {
            let mut response = Map::new();
            if let Some(children) = &result {
                response.insert(format!("{}Result", self.action), object(children));
            }
            response.insert("ResponseMetadata".into(), metadata.content.json());
            let body = json!({ name: response });
            return Answer {
                status: 200,
                content_type: "application/json",
                location: None,
                body: body.to_string(),
            };
        }
        let mut body = format!("<{name} xmlns=\"{namespace}\">\n");
        if let Some(children) = result {
            body.push_str(&format!("<{}Result>", self.action));
            children.iter().for_each(|child| child.write(&mut body));
            body.push_str(&format!("</{}Result>\n", self.action));
        }
        metadata.write(&mut body);
        body.push_str(&format!("\n</{name}>\n"));
        xml_answer(200, "text/xml", body)
    }

    fn query_error(&self, error: &ApiError, namespace: &str) -> Answer {
        let kind = if error.status >= 500 {
            "Receiver"
        } else {
            "Sender"
        };
        if self.wants_json {
            let body = json!({
                "Error": {"Type": kind, "Code": error.code, "Message": error.message},
                "RequestId": self.request_id,
            });
            return Answer {
                status: error.status,
                content_type: "application/json",
                location: None,
                body: body.to_string(),
            };
        }
        let mut body = format!("<ErrorResponse xmlns=\"{namespace}\">\n");
        node(
            "Error",
            vec![
                text("Type", kind),
                text("Code", error.code.clone()),
                text("Message", error.message.clone()),
            ],
        )
        .write(&mut body);
        text("RequestId", self.request_id.to_owned()).write(&mut body);
        body.push_str("\n</ErrorResponse>\n");
        xml_answer(error.status, "text/xml", body)
    }

    fn ec2(&self, result: Option<Vec<Element>>) -> Answer {
        let name = format!("{}Response", self.action);
        let mut body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <{name} xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\n"
        );
        text("requestId", self.request_id.to_owned()).write(&mut body);
        result
            .iter()
            .flatten()
            .for_each(|child| child.write(&mut body));
        body.push_str(&format!("\n</{name}>"));
        xml_answer(200, "text/xml;charset=UTF-8", body)
    }

    fn ec2_error(&self, error: &ApiError) -> Answer {
        let mut body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
        let detail = node(
            "Error",
            vec![
                text("Code", error.code.clone()),
                text("Message", error.message.clone()),
            ],
        );
        node(
            "Response",
            vec![
                node("Errors", vec![detail]),
                text("RequestID", self.request_id.to_owned()),
            ],
        )
        .write(&mut body);
        xml_answer(error.status, "text/xml;charset=UTF-8", body)
    }
}

fn xml_answer(status: u16, content_type: &'static str, body: String) -> Answer {
    Answer {
        status,
        content_type,
        location: None,
        body,
    }
}

fn json_answer(status: u16, body: String) -> Answer {
    Answer {
        status,
        content_type: "application/x-amz-json-1.1",
        location: None,
        body,
    }
}

impl Element {
    fn write(&self, out: &mut String) {
        out.push_str(&format!("<{}>", self.name));
        match &self.content {
            Content::Text(value) => escape(value, out),
            Content::Children(children) => children.iter().for_each(|child| child.write(out)),
        }
        out.push_str(&format!("</{}>", self.name));
    }
}

impl Content {
    fn json(&self) -> Value {
        match self {
            Self::Text(value) => Value::String(value.clone()),
            Self::Children(children) => object(children),
        }
    }
}

fn object(children: &[Element]) -> Value {
    children
        .iter()
        .map(|child| (child.name.to_owned(), child.content.json()))
        .collect()
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' => out.push(c),
            '\r' => out.push_str("&#13;"),
            // XML 1.0 has no way to write these.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(service: Service) -> Asked<'static> {
        Asked {
            service,
            action: "Do",
            request_id: "id",
            wants_json: false,
        }
    }

    #[test]
    fn each_protocol_has_its_own_error_shape() {
        let error = || Err(ApiError::new(403, "Code", "a<b"));
        let body = |service| asked(service).answer(error()).body;
        assert_eq!(
            body(Service::Sts),
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n<Error><Type>Sender</Type>\
             <Code>Code</Code><Message>a&lt;b</Message></Error><RequestId>id</RequestId>\n</ErrorResponse>\n"
        );
        assert_eq!(
            body(Service::Ec2),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>Code</Code>\
             <Message>a&lt;b</Message></Error></Errors><RequestID>id</RequestID></Response>"
        );
        let json: Value = serde_json::from_str(&body(Service::Ssm)).expect("JSON");
        assert_eq!(
            (&json["__type"], &json["message"]),
            (&json!("Code"), &json!("a<b"))
        );
    }

    #[test]
    fn a_query_answer_can_be_had_as_json_as_from_sts() {
        let output = || Ok(Output::Xml(Some(vec![text("Arn", "x")])));
        let asked = Asked {
            wants_json: true,
            ..asked(Service::Sts)
        };
        let json: Value = serde_json::from_str(&asked.answer(output()).body).expect("JSON");
        assert_eq!(json["DoResponse"]["DoResult"]["Arn"], "x");
    }

    #[test]
    fn text_cannot_leave_its_element() {
        let mut out = String::new();
        text("T", "</T>&\u{1}'\"\r").write(&mut out);
        assert_eq!(out, "<T>&lt;/T&gt;&amp;\u{fffd}&apos;&quot;&#13;</T>");
    }
}
