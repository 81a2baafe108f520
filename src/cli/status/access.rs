//! To whom the agent's ports are open, and what is wrong with the files that say so.

use serde_json::Value;

use super::{array, printable, word};

/// A line, and whether it asks for a person.
pub struct Line {
    pub text: String,
    pub alarm: bool,
}

/// Ports that are open to the same stand in one line.
pub fn lines(access: &Value) -> Vec<Line> {
    let mut open: Vec<(String, Vec<String>)> = Vec::new();
    for (port, facts) in access["ports"].as_object().into_iter().flatten() {
        let to = printable(&word(&facts["open_to"]));
        match open.iter_mut().find(|(known, _)| *known == to) {
            Some((_, ports)) => ports.push(printable(port)),
            None => open.push((to, vec![printable(port)])),
        }
    }
    let open = open.into_iter().map(|(to, ports)| Line {
        text: format!("Open to {to}: {}", ports.join(", ")),
        alarm: false,
    });
    let wrong = array(&access["errors"]).map(|error| Line {
        text: format!("Who may come in cannot be read anew: {}", printable(&word(error))),
        alarm: true,
    });
    open.chain(wrong).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_that_are_open_to_the_same_stand_together_and_errors_stand_out() {
        let here = json!({"open_to": "whoever is on this box, without TLS"});
        let status = json!({
            "ports": {"admin": here, "grpc": here, "http": {"open_to": "whoever\u{7} reaches it"}},
            "errors": ["/c cannot be used"],
        });
        let told = lines(&status);
        let texts: Vec<&str> = told.iter().map(|line| line.text.as_str()).collect();
        let expected = [
            "Open to whoever is on this box, without TLS: admin, grpc",
            "Open to whoever  reaches it: http",
            "Who may come in cannot be read anew: /c cannot be used",
        ];
        assert_eq!(texts, expected);
        assert_eq!(told.iter().map(|line| line.alarm).collect::<Vec<_>>(), [false, false, true]);
        // An agent that does not tell.
        assert!(lines(&Value::Null).is_empty());
    }
}
