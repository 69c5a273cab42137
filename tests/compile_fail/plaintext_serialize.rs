fn send(token: &patkit::PlaintextToken) -> String {
    serde_json::to_string(token).unwrap()
}

fn main() {}
