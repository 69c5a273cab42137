fn read(token: &patkit::PlaintextToken) -> &str {
    &token.text
}

fn main() {}
