fn send(token: &patkit::Token) -> String {
    serde_json::to_string(token).unwrap()
}

fn main() {}
