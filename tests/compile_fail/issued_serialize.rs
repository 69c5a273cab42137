fn send(issued: &patkit::IssuedToken) -> String {
    serde_json::to_string(issued).unwrap()
}

fn main() {}
