fn show(token: &patkit::PlaintextToken) -> String {
    format!("{token}")
}

fn main() {}
