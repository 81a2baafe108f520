//! Spans as OpenTelemetry's protocol writes them in JSON: an `ExportTraceServiceRequest`
//! (<https://opentelemetry.io/docs/specs/otlp/>). Whole numbers of 64 bits are texts there, ids hexadecimal.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Kind, Span, Value};
use crate::shell::hashes::hexadecimal;

/// A span, and when it began and ended since 1970.
pub(super) type Timed = (Box<Span>, (Duration, Duration));

/// The body of one request.
pub(super) fn request(spans: &[Timed]) -> Json {
    let version = env!("CARGO_PKG_VERSION");
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let mut resource = vec![text("service.name", "blochd"), text("service.version", version)];
    resource.extend(sysinfo::System::host_name().map(|host| text("host.name", &host)));
    let spans: Vec<Json> = spans.iter().map(|(one, times)| span(one, *times)).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": {"name": "blochd", "version": version}, "spans": spans}],
    }]})
}

fn span(span: &Span, (begun, ended): (Duration, Duration)) -> Json {
    let kind = match span.kind {
        Kind::Internal => 1,
        Kind::Server => 2,
    };
    let told = span.told.iter().map(|(key, value)| {
        let value = match value {
            Value::Text(text) => json!({"stringValue": text}),
            Value::Whole(number) => json!({"intValue": number.to_string()}),
            Value::Number(number) => json!({"doubleValue": number}),
        };
        json!({"key": key, "value": value})
    });
    let mut json = json!({
        "traceId": hexadecimal(&span.place.trace), "spanId": hexadecimal(&span.place.span),
        "name": span.name,
        "kind": kind, "startTimeUnixNano": begun.as_nanos().to_string(),
        "endTimeUnixNano": ended.as_nanos().to_string(), "attributes": told.collect::<Vec<_>>(),
    });
    if let Some(parent) = span.place.parent {
        json["parentSpanId"] = hexadecimal(&parent).into();
    }
    if let Some(error) = &span.error {
        json["status"] = json!({"code": 2, "message": error});
    }
    json
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Place;
    use super::*;

    #[test]
    fn a_span_is_written_as_the_protocol_has_it() {
        let now = Instant::now();
        let place = Place { trace: [0xAB; 16], span: [1; 8], parent: Some([2; 8]) };
        let told = vec![
            ("blochd.model", Value::Text("digits".to_owned())),
            ("blochd.version", Value::Whole(u64::MAX)),
            ("blochd.queue_ms", Value::Number(0.5)),
        ];
        let error = Some("refused".to_owned());
        let (begun, ended, name) = (now, now, "infer");
        let one = Span { place, name, kind: Kind::Server, begun, ended, told, error };
        let times = (Duration::from_nanos(1_700_000_000_000_000_001), Duration::from_secs(2));
        let body = request(&[(Box::new(one), times)]);
        let span = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        let expected = json!({
            "traceId": "abababababababababababababababab", "spanId": "0101010101010101",
            "parentSpanId": "0202020202020202", "name": "infer", "kind": 2,
            "startTimeUnixNano": "1700000000000000001", "endTimeUnixNano": "2000000000",
            "attributes": [
                {"key": "blochd.model", "value": {"stringValue": "digits"}},
                {"key": "blochd.version", "value": {"intValue": "18446744073709551615"}},
                {"key": "blochd.queue_ms", "value": {"doubleValue": 0.5}},
            ],
            "status": {"code": 2, "message": "refused"},
        });
        assert_eq!(*span, expected);
        let resource = &body["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(*resource, json!({"key": "service.name", "value": {"stringValue": "blochd"}}));
    }
}
