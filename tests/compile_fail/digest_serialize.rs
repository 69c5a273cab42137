fn send(digest: &patkit::token::KeyedDigest) -> String {
    serde_json::to_string(digest).unwrap()
}

fn main() {}
