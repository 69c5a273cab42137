// Drives the settings page as its users do: `node console.mjs BASE_URL SCREENSHOT_DIR [CHROMIUM]`.
// The server is a fresh `examples/server` with the users mel (member), max (manager) and ada
// (admin) and the service user ci-bot, none of which has a token yet.
//
// Prints one line per check, then `N passed, N failed`. The page's content security policy is in
// force throughout.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { PATIENCE, Site } from "./browser.mjs";

const [base, screenshots, chromium = "/usr/bin/chromium"] = process.argv.slice(2);
if (!screenshots) {
  console.error("usage: node console.mjs BASE_URL SCREENSHOT_DIR [CHROMIUM]");
  process.exit(2);
}

const MOST_BYTES = 76_000;
// After this many failures nothing works, and the remaining checks would only time out.
const MOST_FAILURES = 8;
const HOSTILE = `<img src=x onerror="alert(1)"><b>x</b>`;
const HEBREW = "שלום עולם";
const POLICY = [
  "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "font-src 'self'", "connect-src 'self'", "base-uri 'none'",
  "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
];
const isPost = (method, path) => method === "POST" && path.endsWith("/user-tokens");
const isList = (method, path) => method === "GET" && path.endsWith("/user-tokens");

/** Makes an expired token. The shortest lifetime is a day, so the expiry is set in the database. */
async function makeExpired(site, cookie) {
  await site.call(cookie, "POST", "/api/user-tokens", { name: "expired", expires_in_days: 1 });
  const update = "UPDATE patkit_tokens SET expires_at = created_at, version = version + 1 WHERE name = 'expired' AND expires_at > created_at";
  await promisify(execFile)("sqlite3", ["-cmd", ".timeout 10000", process.env.PATKIT_DATABASE, update]);
}

let passed = 0;
let failed = 0;

async function check(name, run) {
  try {
    await run();
    passed += 1;
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}\n        ${String(error.stack ?? error).replaceAll("\n", "\n        ")}`);
    if (failed >= MOST_FAILURES) throw new Error("too many failures");
    await recover();
  }
}

/** The page that is reset after a failure, so that the next check is not affected. */
let current = null;
async function recover() {
  if (!current) return;
  current.rules.length = 0;
  await current.read(() => document.querySelector("#d-once[open] [type=submit]")?.click()).catch(() => {});
  await current.open().catch(() => {});
}

/** Checks both color schemes, because contrast differs between them. */
async function accessible(page, view) {
  for (const scheme of ["light", "dark"]) {
    await check(`axe finds nothing: ${view}, ${scheme}`, async () => {
      await page.scheme(scheme);
      const found = await page.violations();
      await page.scheme("light");
      assert.deepEqual(found, []);
    });
  }
}

const screenshot = (page, name) => page.tab.screenshot({ path: join(screenshots, `${name}.png`) });
const problem = (status, detail, more) => ({
  status,
  contentType: "application/problem+json",
  body: JSON.stringify({ type: "about:blank", title: "Problem", status, detail, ...more }),
});

async function aMember(site) {
  const cookie = await site.signIn("mel");
  const page = (current = await site.page("mel", cookie));
  const { tab } = page;

  const release = page.hold(isList);
  await check("the page has the policy that it needs to be safe", async () => {
    const answer = await tab.goto(site.url(""));
    const policy = answer.headers()["content-security-policy"]?.split(";").map((part) => part.trim()) ?? [];
    assert.deepEqual(POLICY.filter((part) => !policy.includes(part)), []);
    await page.see("#loading");
  });
  await accessible(page, "while the list is read");
  release();
  await check("who has no token is told how to get one", async () => {
    await page.settled();
    await page.see("#empty");
    assert.match(await page.text("#user"), /Mel/i);
  });
  await accessible(page, "empty list");
  await check("a member has neither the service tab nor SCIM", async () => {
    assert.equal(await page.isVisible("#tabs"), false);
    await page.click("#generate-first");
    await page.see("#d-generate[open]");
    assert.equal(await page.isVisible("#g-scim"), false);
    assert.equal(await page.isVisible("#g-user"), false);
  });
  await accessible(page, "generate");
  await check("a token without a name is refused beside the name", async () => {
    await page.press("Enter");
    await page.until(() => document.querySelector("#g-name-error").textContent !== "");
    await page.focused('#g-name[aria-invalid="true"]');
    assert.equal(page.requests.filter(({ method }) => method === "POST").length, 0);
  });
  await accessible(page, "generate with a mistake");
  await check("never comes with a warning, and only then", async () => {
    assert.equal(await page.isVisible("#g-never"), false);
    await page.click('#g-lifetimes [value="never"]');
    await page.until(() => /revokes/.test(document.querySelector("#g-never").textContent));
    await page.see("#g-never");
  });
  await accessible(page, "generate with the warning");
  await check("a token that never expires is generated", async () => {
    await page.fill("#g-name", "forever");
    await page.press("Enter");
    const token = await page.takeToken();
    assert.equal(await site.whoami(token), 200);
    const row = await page.row("forever", "active");
    assert.equal(await row.$eval(".c-expires", (cell) => cell.textContent), "Never");
    const sent = JSON.parse(page.requests.findLast(({ method }) => method === "POST").body);
    assert.deepEqual(sent, { name: "forever", expires_in_days: null });
  });

  let token;
  await check("every option reaches the API", async () => {
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.fill("#g-name", "  every option ");
    await page.fill("#g-description", "first line");
    await page.press("Enter");
    await page.type("second line");
    await page.click('#g-lifetimes [value="custom"]');
    await page.fill("#g-days", "45");
    await page.click('#d-generate [name="scope"][value="only"]');
    const scopes = await tab.$$eval("#g-scopes input", (inputs) => inputs.map((input) => input.value));
    if (scopes.length > 0) await page.click("#g-scopes input");
    await page.fill("#g-more", "tokens:manage\n");
    await page.click("#d-generate summary");
    await page.see("#g-networks");
    await page.fill("#g-networks", "127.0.0.0/8\n::1/128");
    await page.click("#d-generate [type=submit]");
    await page.see("#d-once[open]");
    await page.settled();
    token = await tab.$eval("#once-token", (field) => field.value);
    const sent = JSON.parse(page.requests.findLast(({ method }) => method === "POST").body);
    assert.deepEqual(sent, {
      name: "every option",
      description: "first line\nsecond line",
      expires_in_days: 45,
      scopes: ["datastores:read", "tokens:manage"],
      allowed_networks: ["127.0.0.0/8", "::1/128"],
    });
  });
  await accessible(page, "the token, once");
  await screenshot(page, "shown-once");
  await check("the token stays until Done: Escape and a click beside it do not close it", async () => {
    await page.press("Escape", "Escape", "Escape");
    await tab.mouse.click(5, 5);
    assert.equal(await tab.$eval("#d-once", (dialog) => dialog.open), true);
    assert.match(await page.text("#once-said"), /Done/);
    // Browsers close a dialog after repeated Escape presses, even if the page prevents it.
    await page.read(() => document.getElementById("d-once").close());
    await page.see("#d-once[open]");
    assert.equal(await tab.$eval("#once-token", (field) => field.value), token);
  });
  await check("what is copied is what is shown", async () => {
    await page.context.overridePermissions(site.base.origin, ["clipboard-read", "clipboard-write", "clipboard-sanitized-write"]);
    await tab.bringToFront();
    await page.click("#once-copy");
    await page.until(() => /Copied/.test(document.querySelector("#once-said").textContent));
    assert.equal(await page.read(() => navigator.clipboard.readText()), token);
  });
  await check("where copying is not allowed the token is selected", async () => {
    const { context } = page;
    await context.clearPermissionOverrides();
    const setting = { origin: site.base.origin, browserContextId: context.id, setting: "denied" };
    const browser = await site.browser.target().createCDPSession();
    await browser.send("Browser.setPermission", { ...setting, permission: { name: "clipboard-write" } });
    await browser.send("Browser.setPermission", { ...setting, permission: { name: "clipboard-write", allowWithoutSanitization: true } });
    await page.click("#once-copy");
    await page.until(() => /Ctrl\+C/.test(document.querySelector("#once-said").textContent));
    const selected = await page.read(() => {
      const field = document.activeElement;
      return field.value.slice(field.selectionStart, field.selectionEnd);
    });
    assert.equal(selected, token);
    await browser.detach();
  });
  await check("the download is the token, and its name is the token's", async () => {
    await page.click("#once-download");
    const file = await downloaded(site, "every-option-token.txt");
    assert.equal(await readFile(file, "utf8"), token);
  });
  await check("nothing of the token is left once it is closed", async () => {
    await page.click("#d-once [type=submit]");
    await page.miss("#d-once");
    const secret = token.slice(-50);
    const left = await page.read(async () => [
      location.href, JSON.stringify(history.state), JSON.stringify({ ...localStorage }), JSON.stringify({ ...sessionStorage }),
      document.cookie, document.documentElement.outerHTML, ...[...document.querySelectorAll("input, textarea")].map((field) => field.value),
      JSON.stringify(await indexedDB.databases()), JSON.stringify(await caches.keys()),
    ].join("\n"));
    assert.ok(!left.includes(secret));
    assert.ok(!page.seen.join("\n").includes(secret));
    assert.ok(!page.requests.some(({ url, body = "" }) => `${url} ${body}`.includes(secret)));
    assert.equal(await page.read(() => localStorage.length + sessionStorage.length), 0);
  });
  await check("the list says all of it", async () => {
    const row = await page.row("every option", "active");
    const text = await row.evaluate((row) => row.innerText);
    for (const part of ["Active", "first line\nsecond line", "datastores:read", "tokens:manage", "in 45 days", "Not used"]) {
      assert.ok(text.includes(part), `${part} in ${text}`);
    }
    assert.match(text, /Only from 127\.0\.0\.0\/8, ::1\/128/);
    const time = await row.$eval(".c-expires time", ({ dateTime, title }) => ({ dateTime, title }));
    assert.ok(Math.abs(new Date(time.dateTime) - Date.now() - 45 * 86_400_000) < 3_600_000);
    assert.match(time.title, /\d{4}/);
  });

  let working;
  await check("a generated token works", async () => {
    working = await page.generate("deploy");
    assert.equal(await site.whoami(working), 200);
  });
  await check("each state offers its actions: active", async () => {
    assert.equal(await page.actions("deploy", "active"), "edit revoke rotate");
  });
  await check("who thinks better of it revokes nothing", async () => {
    await page.act("deploy", "revoke");
    await page.see("#d-confirm[open]");
    assert.equal(await page.text("#d-confirm-name"), "deploy");
    await page.press("Escape");
    await page.miss("#d-confirm");
    await page.focused('#rows [data-action="revoke"]');
    assert.equal(await site.whoami(working), 200);
  });
  await check("a revoked token is refused", async () => {
    await page.act("deploy", "revoke");
    await page.confirm();
    const row = await page.row("deploy", "revoked");
    assert.equal(await site.whoami(working), 401);
    assert.match(await row.$eval(".revoked", (text) => text.textContent), /^Revoked (just now|\d+ minutes? ago) by its owner$/);
    assert.match(await page.text("#toast"), /deploy.*was revoked/);
  });
  await check("each state offers its actions: revoked", async () => {
    assert.equal(await page.actions("deploy", "revoked"), "delete edit restore");
  });
  await check("a restored token works again", async () => {
    await page.act("deploy", "restore");
    await page.row("deploy", "active");
    assert.equal(await site.whoami(working), 200);
    await page.focused("#rows button");
  });
  await check("the time and the address of the last use are shown", async () => {
    await page.used("deploy");
    await page.open();
    const row = await page.row("deploy");
    assert.match(await row.$eval(".c-used", (cell) => cell.innerText), /^(just now|\d+ (second|minute)s? ago)\nfrom (127\.0\.0\.1|::1)$/);
  });
  await check("a rotated token gives way to another one", async () => {
    await page.act("deploy", "rotate");
    await page.see("#d-confirm[open]");
    await page.click("#d-confirm [type=submit]");
    const next = await page.takeToken();
    assert.notEqual(next, working);
    assert.equal(await site.whoami(working), 401);
    assert.equal(await site.whoami(next), 200);
    assert.equal(await page.actions("deploy", "revoked"), "delete edit");
    working = next;
  });
  await check("with an overlap the old one works on", async () => {
    await page.act("deploy", "rotate", "active");
    await page.see("#d-confirm[open]");
    await page.click('#c-overlaps [value="3600"]');
    await page.click("#d-confirm [type=submit]");
    const next = await page.takeToken();
    assert.equal(await site.whoami(working), 200);
    assert.equal(await site.whoami(next), 200);
  });
  await check("name and description can be changed", async () => {
    await page.act("every option", "edit");
    await page.see("#d-edit[open]");
    await page.fill("#e-name", "every choice");
    await page.fill("#e-description", "other words");
    await page.click("#d-edit [type=submit]");
    await page.miss("#d-edit");
    const row = await page.row("every choice", "active");
    assert.equal(await row.$eval(".about", (text) => text.textContent), "other words");
  });
  await check("a name that is taken is refused beside the name", async () => {
    page.allowed.push("status of 409");
    await page.act("every choice", "edit");
    await page.see("#d-edit[open]");
    await page.fill("#e-name", "FOREVER");
    await page.press("Enter");
    await page.until(() => document.querySelector("#e-name-error").textContent !== "");
    await page.focused('#e-name[aria-invalid="true"]');
  });
  await accessible(page, "edit with a mistake");
  await check("Escape leaves a dialog, and the focus goes back", async () => {
    await page.press("Escape");
    await page.miss("#d-edit");
    await page.focused('#rows [data-action="edit"]');
  });
  await check("a token that may have leaked is revoked for good", async () => {
    await page.act("every choice", "revoke");
    await page.see("#d-confirm[open]");
    await page.click('#d-confirm [name="leaked"]');
    await page.confirm();
    assert.equal(await page.actions("every choice", "revoked"), "delete edit");
  });
  await check("a token is deleted only after a yes", async () => {
    await page.act("every choice", "delete");
    await page.see("#d-confirm[open]");
    assert.equal(await page.text("#d-confirm-name"), "every choice");
    await page.click("#d-confirm [data-close]");
    await page.miss("#d-confirm");
    await page.act("every choice", "delete");
    await page.confirm();
    await page.gone("every choice");
    await page.focused("#rows button");
  });
  let expired;
  await check("an expired token is shown as one, with its actions", async () => {
    await makeExpired(site, cookie);
    await page.open();
    const row = await page.see('#rows tr[data-state="expired"]');
    expired = await row.$eval(".name strong", (name) => name.textContent);
    assert.equal(await row.$eval(".pill", (pill) => pill.textContent), "Expired");
    assert.equal(await page.actions(expired, "expired"), "delete edit");
  });
  await check("names are text, whatever is in them", async () => {
    await page.generate(HOSTILE);
    await page.generate(HEBREW);
    await page.row(HOSTILE, "active");
    await page.row(HEBREW, "active");
    await page.act(HOSTILE, "edit");
    await page.see("#d-edit[open]");
    await page.fill("#e-description", "<script>alert(1)</script>");
    await page.click("#d-edit [type=submit]");
    await page.miss("#d-edit");
    await page.act(HOSTILE, "revoke");
    await page.see("#d-confirm[open]");
    assert.equal(await page.text("#d-confirm-name"), HOSTILE);
    assert.equal(await page.read(() => document.querySelectorAll("main img, dialog img, #rows b, #rows script").length), 0);
    await page.confirm();
    const row = await page.row(HOSTILE, "revoked");
    assert.equal(await row.$eval(".about", (text) => text.textContent), "<script>alert(1)</script>");
  });
  await check("a hostile name makes a harmless file name", async () => {
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.fill("#g-name", `../..\\${HEBREW}/<a>:"|?*.exe`);
    await page.press("Enter");
    await page.see("#d-once[open]");
    await page.click("#once-download");
    await downloaded(site, "שלום-עולם-a-.exe-token.txt");
    await page.takeToken();
  });
  // By now the list contains all three states.
  await page.read(() => document.activeElement.blur());
  await accessible(page, "list");
  for (const [action, state] of [["revoke", "active"], ["rotate", "active"], ["delete", "expired"]]) {
    await check(`the question before: ${action}`, async () => {
      await (await page.see(`#rows tr[data-state="${state}"] [data-action="${action}"]`)).click();
      await page.see("#d-confirm[open]");
    });
    await accessible(page, `the question before ${action}`);
    await page.press("Escape");
    await page.miss("#d-confirm");
  }
  await check("on a narrow screen the list is cards, and nothing is cut off", async () => {
    const long = "W".repeat(255);
    await site.call(cookie, "POST", "/api/user-tokens", { name: long, description: "x".repeat(1000) });
    await tab.setViewport({ width: 320, height: 700 });
    await page.open();
    await page.row(long);
    const right = await page.read(() => {
      const parts = [...document.querySelectorAll("main, main *")].filter((part) => part.checkVisibility() && !part.closest("thead"));
      return Math.max(...parts.map((part) => part.getBoundingClientRect().right));
    });
    assert.ok(right <= 320, `something reaches to ${right} of 320`);
    const shown = await tab.$eval("#rows td.c-expires", (cell) => getComputedStyle(cell, "::before").content);
    assert.match(shown, /Expires/);
    await page.act(long, "revoke");
    await page.see("#d-confirm[open]");
    assert.ok((await page.read(() => document.querySelector("#d-confirm").scrollWidth)) <= 320);
    await page.confirm();
    await page.act(long, "delete");
    await page.confirm();
    await page.gone(long);
  });
  await accessible(page, "list on a narrow screen");
  await tab.setViewport({ width: 1240, height: 860 });
  return { page, cookie };
}

async function downloaded(site, name) {
  const end = Date.now() + PATIENCE;
  // Each turn is a round trip to the browser, which also delivers its events.
  while (!site.downloaded.some(({ suggestedFilename, isDone }) => suggestedFilename === name && isDone)) {
    if (Date.now() > end) throw new Error(`${name} was not downloaded: ${JSON.stringify(site.downloaded)}`);
    await site.browser.version();
  }
  return join(site.downloads, name);
}

/** Failures on the way to the server, and changes that the page does not know of. */
async function trouble(site, { page, cookie }) {
  current = page;
  const { tab } = page;
  page.allowed.push("status of 403", "status of 404", "status of 503", "status of 401", "net::ERR_FAILED");

  await check("a form is sent once, however often it is submitted", async () => {
    await page.open();
    const before = page.requests.filter(({ method }) => method === "POST").length;
    const release = page.hold(isPost);
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.fill("#g-name", "only once");
    await page.press("Enter", "Enter", "Enter");
    await page.click("#d-generate [type=submit]");
    await page.press("Escape");
    assert.equal(await tab.$eval("#d-generate", (dialog) => dialog.open), true);
    release();
    await page.takeToken();
    assert.equal(page.requests.filter(({ method }) => method === "POST").length - before, 1);
  });
  await check("a server that is busy is to be tried again", async () => {
    const remove = page.intercept((method) => method === "PUT", (request) => request.respond(problem(503, "No database.")));
    await page.act("only once", "revoke");
    await page.see("#d-confirm[open]");
    await page.click("#d-confirm [type=submit]");
    await page.until(() => /try again/i.test(document.querySelector("#d-confirm .problem").textContent));
    remove();
  });
  await accessible(page, "a question with a problem");
  await check("... and the same dialog does it then", async () => {
    await page.confirm();
    await page.row("only once", "revoked");
  });
  await check("a server that does not answer is no success", async () => {
    const remove = page.intercept((method) => method === "PUT", (request) => request.abort("failed"));
    await page.act("only once", "restore");
    await page.until(() => /did not answer/.test(document.querySelector("#alert").textContent));
    remove();
    await page.row("only once", "revoked");
  });
  await check("what went away behind the page's back is said, and goes", async () => {
    const { items } = await site.call(cookie, "GET", "/api/user-tokens?limit=200");
    await site.call(cookie, "DELETE", `/api/user-tokens/${items.find(({ name }) => name === "only once").id}`);
    await page.act("only once", "delete");
    await page.confirm();
    await page.until(() => document.querySelector('#alert[role="alert"]').textContent !== "");
    await page.gone("only once");
  });
  await accessible(page, "list with a problem");
  await check("an action that is refused is said, and the list is read anew", async () => {
    const { items } = await site.call(cookie, "GET", "/api/user-tokens?limit=200");
    const forever = items.find(({ name }) => name === "forever");
    await site.call(cookie, "PUT", `/api/user-tokens/${forever.id}`, { active: false });
    await page.act("forever", "rotate", "active");
    await page.see("#d-confirm[open]");
    await page.click("#d-confirm [type=submit]");
    await page.miss("#d-confirm");
    await page.row("forever", "revoked");
    assert.notEqual(await page.text("#alert"), "");
  });
  await check("who has to sign in again is shown where", async () => {
    const answer = problem(403, "sign in again first", { code: "recent_sign_in_required" });
    const remove = page.intercept(isPost, (request) => request.respond(answer));
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.fill("#g-name", "after a while");
    await page.press("Enter");
    await page.see("#d-generate .problem a[href]");
    assert.match(await page.text("#d-generate .problem"), /^Sign in again first\./);
    remove();
    await page.press("Escape");
    await page.miss("#d-generate");
  });
  await check("a list that can't be read is asked for again", async () => {
    const remove = page.intercept(isList, (request) => request.respond(problem(503, "No database.")));
    await tab.reload();
    await page.see("#broken");
    remove();
    await page.click("#again");
    await page.row("forever");
    assert.equal(await page.text("#alert"), "");
  });
  await check("what the policy forbids is not offered", async () => {
    const remove = page.intercept((_, path) => path.endsWith("/settings.json"), (request) => request.respond({
      contentType: "application/json",
      body: JSON.stringify({
        user: { id: "mel", name: HOSTILE }, may: { personal: true, service: false, scim: false }, scopes: [], service_users: [],
        policy: { lifetimes: [30, 60, 90, 365, null], default_days: 45, longest_days: 60, never: true, longest_overlap_seconds: 3600 },
        final_reasons: ["rotated", "reuse", "compromised"],
      }),
    }));
    await page.open();
    assert.equal(await page.text("#user strong"), HOSTILE);
    await page.click("#generate");
    await page.see("#d-generate[open]");
    const offered = await tab.$$eval("#g-lifetimes input", (inputs) => inputs.map((input) => input.value + (input.checked ? "!" : "")));
    assert.deepEqual(offered, ["30", "60", "custom!"]);
    assert.equal(await tab.$eval("#g-days", (field) => `${field.value} of ${field.max}`), "45 of 60");
    await page.press("Escape");
    await page.miss("#d-generate");
    await (await page.see('#rows [data-action="rotate"]')).click();
    await page.see("#d-confirm[open]");
    assert.deepEqual(await tab.$$eval("#c-overlaps input", (inputs) => inputs.map((input) => input.value)), ["0", "3600"]);
    await page.press("Escape");
    await page.miss("#d-confirm");
    remove();
  });
  await check("who is signed out is told, and no longer sees the list", async () => {
    await page.open();
    await page.context.deleteCookie(...(await page.context.cookies()));
    await page.act("forever", "restore");
    await page.until(() => /signed out/.test(document.querySelector("#alert").textContent));
    const link = await page.see("#alert a");
    assert.match(await link.evaluate((link) => link.href), /sign-in/);
    assert.equal(await page.isVisible("#console"), false);
    assert.equal(await tab.$$eval("#rows tr", (rows) => rows.length), 0);
  });
  await accessible(page, "signed out");
}

async function aManager(site) {
  const cookie = await site.signIn("max");
  const page = (current = await site.page("max", cookie));
  const { tab } = page;
  const rows = () => tab.$$eval("#rows tr", (rows) => rows.length);

  await check("more than a page is read page by page, newest first", async () => {
    for (let number = 1; number <= 55; number += 1) {
      await site.call(cookie, "POST", "/api/user-tokens", { name: `script ${number}`, expires_in_days: 30 });
    }
    await page.open();
    assert.equal(await rows(), 50);
    assert.equal(await page.text("#rows .name strong"), "script 55");
    await page.click("#load-more");
    await page.until(() => document.querySelectorAll("#rows tr").length === 55);
    assert.equal(await page.isVisible("#load-more"), false);
    await page.focused("#rows tr:nth-child(51) button");
    const names = await tab.$$eval("#rows .name strong", (names) => names.map((name) => name.textContent));
    assert.deepEqual(names, Array.from({ length: 55 }, (_, index) => `script ${55 - index}`));
  });
  await check("an action far down leaves the reader there", async () => {
    await page.act("script 2", "revoke");
    await page.confirm();
    await page.row("script 2", "revoked");
    assert.equal(await rows(), 55);
    await page.focused("#rows tr:nth-child(54) button");
  });

  await check("by keyboard: generate", async () => {
    await page.open();
    await page.tabTo("#generate");
    await page.press("Enter");
    await page.focused("#g-name");
    await page.type("by keyboard");
    await page.tabTo('#g-lifetimes [value="90"]');
    await page.press("ArrowLeft");
    await page.focused('#g-lifetimes [value="60"]');
    await page.tabTo('#d-generate [value="all"]');
    await page.press("ArrowDown");
    await page.see("#g-only");
    await page.tabTo("#g-more");
    await page.type("datastores:read");
    await page.tabTo("#d-generate [type=submit]");
    await page.press("Enter");
    await page.see("#d-once[open]");
    await page.focused("#once-copy");
    await page.settled();
    await page.press("Escape", "Escape");
    await page.tabTo("#d-once [type=submit]");
    await page.press("Enter");
    await page.miss("#d-once");
    await page.focused('#rows tr:first-child [data-action="edit"]');
    const row = await page.row("by keyboard", "active");
    assert.match(await row.evaluate((row) => row.innerText), /in 60 days/);
  });
  await check("by keyboard: revoke, restore and delete", async () => {
    await page.tabTo('[data-action="revoke"]');
    await page.press("Enter");
    await page.see("#d-confirm[open]");
    await page.focused("#d-confirm [data-close]");
    await page.press("Escape");
    await page.miss("#d-confirm");
    await page.focused('#rows tr:first-child [data-action="revoke"]');
    for (const [action, state] of [["revoke", "revoked"], ["restore", "active"], ["revoke", "revoked"]]) {
      if (!(await page.read((action) => document.activeElement.dataset.action === action, action))) {
        await page.tabTo(`[data-action="${action}"]`);
      }
      await page.press("Enter");
      if (action === "revoke") {
        await page.see("#d-confirm[open]");
        await page.tabTo("#d-confirm [type=submit]");
        await page.press("Enter");
        await page.miss("#d-confirm");
      }
      await page.row("by keyboard", state);
      await page.focused("#rows tr:first-child button");
    }
    await page.tabTo('[data-action="delete"]');
    await page.press("Space");
    await page.see("#d-confirm[open]");
    await page.tabTo("#d-confirm [type=submit]");
    await page.press("Space");
    await page.miss("#d-confirm");
    await page.gone("by keyboard");
    await page.focused("#rows tr:first-child button");
  });
}

async function anAdmin(site) {
  const cookie = await site.signIn("ada");
  const page = (current = await site.page("ada", cookie));
  const { tab } = page;

  await check("an admin has both tabs, and arrow keys lead from one to the other", async () => {
    await page.open();
    await page.tabTo("#tab-personal");
    await page.press("ArrowRight");
    await page.focused('#tab-service[aria-selected="true"]');
    await page.settled();
    await page.see("#empty");
    assert.equal(await tab.$eval("#tab-personal", (button) => button.tabIndex), -1);
    await page.press("ArrowRight");
    await page.focused('#tab-personal[aria-selected="true"]');
    await page.press("End");
    await page.focused('#tab-service[aria-selected="true"]');
    await page.press("Home");
    await page.focused('#tab-personal[aria-selected="true"]');
    await page.settled();
  });
  await check("an admin generates a token for SCIM", async () => {
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.fill("#g-name", "identity provider");
    await page.click("#g-scim");
    await page.click("#d-generate [type=submit]");
    await page.takeToken();
    const row = await page.row("identity provider", "active");
    assert.match(await row.evaluate((row) => row.innerText), /SCIM endpoints only/);
    assert.equal(JSON.parse(page.requests.findLast(({ method }) => method === "POST").body).scim_endpoints_only, true);
  });
  await check("a service user that does not exist is refused beside the field", async () => {
    page.allowed.push("status of 422", "status of 404", "status of 403");
    await page.click("#tab-service");
    await page.settled();
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.focused("#g-user");
    await page.fill("#g-user", "nobody");
    await page.fill("#g-name", "nightly export");
    await page.press("Enter");
    await page.until(() => [...document.querySelectorAll("#g-user-error, #d-generate .problem")].some((text) => text.textContent));
  });
  await accessible(page, "generate for a service user");
  await check("a service token is generated for its user", async () => {
    assert.ok((await tab.$$eval("#g-users option", (options) => options.map((option) => option.value))).includes("ci-bot"));
    await page.fill("#g-user", "ci-bot");
    await page.click("#d-generate [type=submit]");
    const token = await page.takeToken();
    assert.equal(await site.whoami(token), 200);
    const row = await page.row("nightly export", "active");
    assert.match(await row.$eval(".c-owner", (cell) => cell.innerText), /ci-bot/);
    await page.act("nightly export", "revoke");
    await page.confirm();
    const revoked = await page.row("nightly export", "revoked");
    assert.match(await revoked.$eval(".revoked", (text) => text.textContent), / by an administrator, ada$/);
    assert.equal(await site.whoami(token), 401);
    await page.act("nightly export", "restore");
    await page.row("nightly export", "active");
  });
  await accessible(page, "service tokens");
  await check("the tabs keep the two kinds apart", async () => {
    await page.click("#tab-personal");
    await page.row("identity provider");
    await page.gone("nightly export");
  });

  // A list with tokens of every kind.
  const make = (body) => site.call(cookie, "POST", "/api/user-tokens", body);
  await makeExpired(site, cookie);
  const laptop = await make({ name: "old laptop", expires_in_days: 30 });
  await site.call(cookie, "PUT", `/api/user-tokens/${laptop.id}`, { active: false });
  await make({ name: "backup", description: "Nightly copy to the other house", expires_in_days: 5, scopes: ["datastores:read"] });
  const panels = await make({
    name: "wall panels",
    description: "Read only, for the screen in the hall",
    expires_in_days: null,
    scopes: ["datastores:read"],
    allowed_networks: ["127.0.0.0/8", "2001:db8::/32"],
  });
  await site.whoami(panels.bearer_token);
  await page.used("wall panels");
  await make({ name: "deploy pipeline", description: "Pushes releases", scopes: ["datastores:read", "datastores:write"] });
  await check("the list as it looks", async () => {
    await page.open();
    await page.row("deploy pipeline");
    await screenshot(page, "list-light");
    await page.scheme("dark");
    await screenshot(page, "list-dark");
    await page.scheme("light");
    await tab.setViewport({ width: 390, height: 844, deviceScaleFactor: 2 });
    await screenshot(page, "mobile");
    await tab.setViewport({ width: 1240, height: 860 });
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await screenshot(page, "generate");
    await page.press("Escape");
    await page.miss("#d-generate");
  });
}

/** Returns a handler that answers a list request with these tokens of Mel's. */
const listOf = (...tokens) => (request) => request.respond({
  contentType: "application/json",
  body: JSON.stringify({
    items: tokens.map((token, index) => ({
      id: `token${index}`, name: `token ${index}`, description: null, kind: "personal", state: "active", active: true,
      created: "2026-01-01T00:00:00Z", expiration: null, last_used: null, last_used_address: null, revoked: null, scopes: null,
      allowed_networks: null, successor: null, user: { id: "mel", name: "Mel", kind: "human" }, ...token,
    })),
    next: null,
  }),
});

/**
 * One browser and one session: the page's behavior when the session changes to another user or
 * ends.
 */
async function twoUsers(site) {
  const [mel, ada] = [await site.signIn("mel"), await site.signIn("ada")];
  const page = (current = await site.page("two users", mel));
  const { tab } = page;
  page.allowed.push("status of 412", "status of 401", "status of 403");
  const become = async (cookie) => {
    const [name, value] = cookie.split(/=(.*)/s);
    await page.context.setCookie({ name, value, domain: site.base.hostname, path: "/", httpOnly: true });
  };
  const names = async (cookie) => (await site.call(cookie, "GET", "/api/user-tokens?limit=200")).items.map(({ name }) => name);
  await site.call(mel, "POST", "/api/user-tokens", { name: "of mel" });
  await site.call(ada, "POST", "/api/user-tokens", { name: "of ada" });

  const ways = {
    generate: async () => {
      await page.click("#generate");
      await page.see("#d-generate[open]");
      await page.fill("#g-name", "for whom");
      await become(ada);
      await page.press("Enter");
    },
    edit: async () => {
      await page.act("of mel", "edit");
      await page.see("#d-edit[open]");
      await page.fill("#e-name", "renamed");
      await become(ada);
      await page.press("Enter");
    },
    revoke: async () => {
      await page.act("of mel", "revoke");
      await page.see("#d-confirm[open]");
      await become(ada);
      await page.click("#d-confirm [type=submit]");
    },
    "try the list again": async () => {
      const remove = page.intercept(isList, (request) => request.respond(problem(503, "down")));
      page.allowed.push("status of 503");
      await tab.reload();
      await page.see("#broken");
      remove();
      await become(ada);
      await page.click("#again");
    },
    "open the dialog": async () => {
      await become(ada);
      await page.click("#generate");
    },
  };
  for (const [way, run] of Object.entries(ways)) {
    await check(`a page of one user does nothing for another: ${way}`, async () => {
      await become(mel);
      await page.open();
      const before = await names(ada);
      await run();
      await page.until(() => /somebody else has signed in/i.test(document.querySelector("#alert").textContent));
      const text = await page.read(() => document.body.innerText);
      assert.doesNotMatch(text, /of ada|of mel|Mel Member|Ada Admin/);
      assert.equal(await page.isVisible("#console"), false);
      assert.equal(await tab.$$eval("dialog[open]", (all) => all.length), 0);
      assert.deepEqual(await names(ada), before);
      assert.ok((await names(mel)).includes("of mel"));
    });
  }
  await accessible(page, "another user");
  await check("... and offers to load the page again, as the other user's", async () => {
    await Promise.all([tab.waitForNavigation(), page.click("#alert button")]);
    await page.row("of ada");
    assert.match(await page.text("#user"), /Ada Admin/);
  });
  await check("an answer for another user is not shown, whoever brings it", async () => {
    await become(mel);
    for (const headers of [{ "Patkit-User": "0".repeat(32) }, {}]) {
      const user = { id: "ada", name: "Ada", kind: "human" };
      const remove = page.intercept(isList, (request) => {
        const respond = request.respond.bind(request);
        request.respond = (answer) => respond({ ...answer, headers });
        return listOf({ name: "of ada", ...(headers["Patkit-User"] ? {} : { user }) })(request);
      });
      await tab.reload();
      await page.until(() => /somebody else has signed in/i.test(document.querySelector("#alert").textContent));
      remove();
      assert.doesNotMatch(await page.read(() => document.body.innerText), /of ada/);
    }
  });

  await check("an expired session keeps what was typed, and the same form works after a sign-in", async () => {
    await become(mel);
    await page.open();
    await page.click("#generate");
    await page.see("#d-generate[open]");
    await page.fill("#g-name", "typed before");
    await page.fill("#g-description", "much text");
    await page.context.deleteCookie(...(await page.context.cookies()));
    await page.click("#d-generate [type=submit]");
    await page.until(() => /signed out/.test(document.querySelector("#d-generate .problem").textContent));
    const link = await tab.$eval("#d-generate .problem a", ({ href, target }) => ({ href, target }));
    assert.deepEqual(link, { href: site.url("/sign-in"), target: "_blank" });
    assert.equal(await tab.$eval("#g-name", (field) => field.value), "typed before");
    assert.equal(await tab.$$eval("#rows tr", (rows) => rows.length), 0);
  });
  await accessible(page, "signed out within a form");
  await check("... and what the form asked for is made, and the list comes back", async () => {
    await become(mel);
    await page.click("#d-generate [type=submit]");
    await page.takeToken();
    const row = await page.row("typed before", "active");
    assert.equal(await row.$eval(".about", (text) => text.textContent), "much text");
    assert.match(await page.text("#user"), /Mel/);
  });
  await check("a list whose session expired comes back by a button", async () => {
    await page.context.deleteCookie(...(await page.context.cookies()));
    await page.act("typed before", "edit");
    await page.see("#d-edit[open]");
    await page.fill("#e-name", "typed later");
    await page.press("Enter");
    await page.until(() => /signed out/.test(document.querySelector("#d-edit .problem").textContent));
    await page.press("Escape");
    await page.miss("#d-edit");
    await become(mel);
    await page.click("#alert button");
    await page.row("typed before");
    assert.equal(await page.text("#alert"), "");
  });
  await page.context.close();
}

/** Dialogs and buttons while the server is slow. */
async function slowness(site) {
  const cookie = await site.signIn("mel");
  const page = (current = await site.page("slowness", cookie));
  const { tab } = page;
  page.allowed.push("status of 503", "status of 422", "status of 404", "status of 500", "net::ERR", "Failed to load");
  await site.call(cookie, "POST", "/api/user-tokens", { name: "slow one" });
  const cases = {
    generate: ["#d-generate", isPost, async () => {
      await page.click("#generate");
      await page.fill("#g-name", "slow");
    }],
    edit: ["#d-edit", (method) => method === "PUT", async () => {
      await page.act("slow one", "edit");
      await page.fill("#e-name", "slower");
    }],
    revoke: ["#d-confirm", (method) => method === "PUT", () => page.act("slow one", "revoke")],
    rotate: ["#d-confirm", (_, path) => path.endsWith("/rotate"), () => page.act("slow one", "rotate")],
  };
  for (const [action, [dialog, matches, begin]] of Object.entries(cases)) {
    await check(`nothing closes a dialog while its request runs: ${action}`, async () => {
      await page.open();
      await begin();
      await page.see(`${dialog}[open]`);
      let answer;
      const sent = new Promise((resolve) => (answer = resolve));
      const remove = page.intercept(matches, answer);
      await page.click(`${dialog} [type=submit]`);
      const request = await sent;
      const before = page.requests.length;
      await page.press("Escape", "Escape", "Escape", "Escape");
      await tab.mouse.click(5, 5);
      await page.click(`${dialog} [data-close]`);
      await page.click(`${dialog} [type=submit]`);
      // As a system gesture does.
      await page.read((dialog) => document.querySelector(dialog).requestClose?.(), dialog);
      await page.read((dialog) => document.querySelector(dialog).close(), dialog);
      await page.see(`${dialog}[open]`);
      assert.equal(page.requests.slice(before).filter(({ method }) => method !== "GET").length, 0);
      const prevented = await page.read(() => !dispatchEvent(new Event("beforeunload", { cancelable: true })));
      assert.equal(prevented, true, "leaving the page is asked about");
      await request.respond(problem(503, "down"));
      await page.until((dialog) => /busy/.test(document.querySelector(`${dialog} .problem`).textContent), dialog);
      assert.equal(await tab.$eval(dialog, (dialog) => dialog.open), true);
      remove();
      await page.press("Escape");
      await page.miss(dialog);
    });
  }
  await check("a token is restored once, however often that is asked for and whatever is drawn meanwhile", async () => {
    const { items } = await site.call(cookie, "GET", "/api/user-tokens?limit=200");
    const { id } = items.find(({ name }) => name === "slow one");
    await site.call(cookie, "PUT", `/api/user-tokens/${id}`, { active: false });
    await page.open();
    const release = page.hold((method) => method === "PUT");
    await page.act("slow one", "restore");
    await page.read(() => dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true })));
    await page.settled();
    await page.act("slow one", "restore", "revoked");
    release();
    await page.row("slow one", "active");
    assert.equal(page.requests.filter(({ method, path }) => method === "PUT" && path.endsWith(id)).length, 1 + 2);
  });

  for (const [what, status] of [["is missing", 404], ["fails", 500], ["does not come", 0]]) {
    await check(`a script that ${what} is no dead end`, async () => {
      const isScript = (_, path) => path.endsWith("/script.js");
      const remove = page.intercept(isScript, (request) => (status ? request.respond({ status, body: "" }) : request.abort("failed")));
      await tab.goto(site.url(""));
      await page.until(() => document.querySelector("#boot p:not(.late)").checkVisibility());
      await page.until(() => document.querySelector("#boot .late").checkVisibility({ visibilityProperty: true }));
      remove();
      await Promise.all([tab.waitForNavigation(), page.click("#boot a")]);
      await page.row("slow one");
      assert.equal(await page.isVisible("#boot"), false);
    });
  }
  await check("without JavaScript the page says so, and says nothing else", async () => {
    await tab.setJavaScriptEnabled(false);
    await tab.goto(site.url(""));
    const text = await tab.$eval("main", (main) => main.innerText);
    await tab.setJavaScriptEnabled(true);
    assert.match(text, /works with JavaScript only/);
    assert.doesNotMatch(text, /Loading/);
  });
  const isSettings = (_, path) => path.endsWith("/settings.json");
  await check("settings that are slow are waited for visibly", async () => {
    const release = page.hold(isSettings);
    await tab.goto(site.url(""));
    await page.see("#boot");
    assert.match(await page.text("#boot"), /Loading/);
    release();
    await page.row("slow one");
    assert.equal(await page.isVisible("#boot"), false);
  });
  const html = { contentType: "text/html", body: "<p>Please sign in" };
  const answers = { 503: problem(503, "down"), 500: { status: 500, body: "x" }, "a page": html, "null": { contentType: "application/json", body: "null" },
    "an empty object": { contentType: "application/json", body: "{}" }, "no answer": null };
  for (const [what, answer] of Object.entries(answers)) {
    await check(`settings that fail are asked for again: ${what}`, async () => {
      page.allowed.push("TypeError");
      const remove = page.intercept(isSettings, (request) => (answer ? request.respond(answer) : request.abort("failed")));
      await tab.goto(site.url(""));
      await page.see("#alert button");
      assert.doesNotMatch(await page.text("#alert"), /undefined|null|Error|JSON/);
      assert.equal(await page.isVisible("#boot"), false);
      remove();
      await page.click("#alert button");
      await page.row("slow one");
      assert.equal(await page.text("#alert"), "");
    });
  }
  await check("who is offline is told, and the page goes on by itself", async () => {
    await page.open();
    const remove = page.intercept(isList, (request) => request.abort("internetdisconnected"));
    await tab.setOfflineMode(true);
    await page.see("#offline");
    await page.act("slow one", "revoke");
    await page.click("#d-confirm [type=submit]");
    await page.until(() => /offline, so nothing was sent/.test(document.querySelector("#d-confirm .problem").textContent));
    await page.press("Escape");
    remove();
    await tab.setOfflineMode(false);
    await page.until(() => document.querySelector("#offline").hidden);
    await page.row("slow one", "active");
  });

  const details = ["entry 0 of the scope is no grant: byte 4", "JSON path .scopes[0]"];
  await check("what the server tells developers reaches no user", async () => {
    for (const status of [400, 403, 404, 409, 412, 413, 415, 418, 422, 429, 500, 503]) {
      for (const more of [{}, { code: "invalid", field: "scopes[0]" }, { code: "constructor" }]) {
        const remove = page.intercept(isPost, (request) => request.respond(problem(status, details[0], more)));
        page.allowed.push(`status of ${status}`);
        await page.open();
        await page.click("#generate");
        await page.fill("#g-name", "x");
        await page.press("Enter");
        await page.until(() => [...document.querySelectorAll("#d-generate :is(.problem, .error)")].some((text) => text.textContent));
        const text = await page.read(() => document.body.innerText);
        assert.doesNotMatch(text, /entry 0|byte|grant|undefined|function/, `${status} ${JSON.stringify(more)}`);
        remove();
      }
    }
  });
  await check("each refused field is said at its field, by the server's words for users", async () => {
    const errors = [
      { pointer: "/name", detail: "choose another name" },
      { pointer: "#/allowed_networks/1", detail: "this is not a network" },
      { pointer: "/metadata/a", detail: "too much metadata" },
    ];
    const remove = page.intercept(isPost, (request) => request.respond(problem(422, details[1], { code: "invalid", errors })));
    await page.open();
    await page.click("#generate");
    await page.fill("#g-name", "x");
    await page.click("#d-generate summary");
    await page.fill("#g-networks", "10.0.0.0/8\nx");
    await page.click("#d-generate [type=submit]");
    await page.focused('#g-name[aria-invalid="true"]');
    assert.equal(await page.text("#g-name-error"), "Choose another name.");
    assert.equal(await page.text("#g-networks-error"), "“\u2068x\u2069”: This is not a network.");
    assert.equal(await page.text("#d-generate .problem"), "Too much metadata.");
    remove();
  });
  await accessible(page, "several refused fields");
  await page.context.close();
}

/** The permissions that are offered, and what a screen reader announces. */
async function offers(site) {
  const page = (current = await site.page("offers", await site.signIn("mel")));
  const { tab } = page;
  await check("only permissions that the actor holds are offered, and taken", async () => {
    await page.open();
    await page.click("#generate");
    await page.click('#d-generate [name="scope"][value="only"]');
    assert.deepEqual(await tab.$$eval("#g-scopes input", (inputs) => inputs.map((input) => input.value)), ["datastores:read"]);
    assert.doesNotMatch(await page.text("#g-more-hint"), /reports/);
    await page.fill("#g-name", "too much");
    await page.fill("#g-more", "datastores:write");
    await page.click("#d-generate [type=submit]");
    await page.until(() => /do not have/.test(document.querySelector("#g-scopes-error").textContent));
    assert.ok(!page.requests.some(({ method }) => method === "POST"));
    await page.press("Escape");
    await page.miss("#d-generate");
  });
  await check("a permission that is gone since the page was loaded is no longer offered", async () => {
    const remove = page.intercept((_, path) => path.endsWith("/settings.json"), (request) => request.respond({
      contentType: "application/json",
      body: JSON.stringify({
        user: { id: "mel", name: "Mel" }, may: { personal: true, service: false, scim: false }, scopes: ["a:*", "b"], holds: ["a:*", "b"], service_users: [],
        policy: { lifetimes: [30, null], default_days: 30, longest_days: null, never: true, longest_overlap_seconds: 0 },
        final_reasons: ["rotated", "reuse", "compromised"],
      }),
    }));
    await page.click("#generate");
    await page.until(() => [...document.querySelectorAll("#g-scopes input")].map((input) => input.value).join() === "a:*,b");
    await page.press("Escape");
    await page.miss("#d-generate");
    remove();
  });
  await check("every action is heard with the token that it is about", async () => {
    await page.generate("heard");
    const unnamed = [];
    const look = async (selector) => {
      for (const button of await tab.$$(selector)) {
        const heard = (await tab.accessibility.snapshot({ root: button }))?.name ?? "";
        const row = await button.evaluate((button) => button.closest("tr")?.querySelector(".name strong").textContent ?? "heard");
        const shown = await button.evaluate((button) => button.innerText.trim());
        if (!heard.includes(row) || !heard.startsWith(shown)) unnamed.push(heard);
      }
    };
    await page.row("heard");
    await look("#rows button");
    for (const [action, dialog] of [["edit", "#d-edit"], ["revoke", "#d-confirm"], ["rotate", "#d-confirm"]]) {
      await page.act("heard", action);
      await page.see(`${dialog}[open]`);
      await look(`${dialog} [type=submit]`);
      await page.press("Escape");
      await page.miss(dialog);
    }
    assert.deepEqual(unnamed, []);
  });
  await page.context.close();
}

/** The relative times that are shown, by instant and time zone. */
async function calendars(site) {
  const cookie = await site.signIn("mel");
  // The current instant, the expiry, and its text. Days are calendar days of the reader's zone,
  // which may have 23 to 25 hours.
  const cases = [
    ["UTC", "2026-03-10T23:59:00Z", "2026-03-11T00:01:00Z", "in 2 minutes"],
    ["UTC", "2026-03-10T00:01:00Z", "2026-03-11T23:59:00Z", "tomorrow"],
    ["UTC", "2026-03-10T22:30:00Z", "2026-03-11T00:00:00Z", "tomorrow"],
    ["UTC", "2026-03-10T23:30:00Z", "2026-03-12T00:30:00Z", "in 2 days"],
    ["UTC", "2026-03-10T00:30:00Z", "2026-03-10T23:59:00Z", "in 23 hours"],
    ["UTC", "2026-03-10T12:00:00Z", "2026-03-09T23:00:00Z", "yesterday"],
    ["UTC", "2026-03-10T12:00:00Z", "2026-03-10T12:00:30Z", "in less than a minute"],
    ["UTC", "2026-03-10T12:00:00Z", "2026-06-17T12:00:00Z", "in 99 days"],
    ["UTC", "2026-01-31T12:00:00Z", "2027-01-30T12:00:00Z", "in 11 months"],
    ["UTC", "2026-03-10T12:00:00Z", "2029-03-09T12:00:00Z", "in 2 years"],
    ["Asia/Tokyo", "2026-03-10T14:00:00Z", "2026-03-10T16:00:00Z", "tomorrow"],
    ["America/New_York", "2026-03-10T23:00:00Z", "2026-03-11T03:30:00Z", "in 4 hours"],
    ["Pacific/Kiritimati", "2026-03-10T09:00:00Z", "2026-03-11T11:00:00Z", "in 2 days"],
    // The clock goes forward on 8 March and 29 March, and back on 25 October and 1 November.
    ["America/New_York", "2026-03-08T04:30:00Z", "2026-03-09T04:30:00Z", "in 2 days"],
    ["America/New_York", "2026-03-07T05:30:00Z", "2026-03-09T04:30:00Z", "in 2 days"],
    ["Europe/Berlin", "2026-03-28T23:30:00Z", "2026-03-29T22:30:00Z", "tomorrow"],
    ["Europe/Berlin", "2026-10-24T22:30:00Z", "2026-10-25T22:45:00Z", "in 24 hours"],
    ["Europe/Berlin", "2026-10-24T21:30:00Z", "2026-10-25T23:30:00Z", "in 2 days"],
    ["America/St_Johns", "2026-11-01T02:00:00Z", "2026-11-01T03:00:00Z", "tomorrow"],
  ];
  const page = (current = await site.page("calendars", cookie));
  const { tab } = page;
  page.intercept(isList, (request) => listOf({ expiration: current.expiration })(request));
  const shown = async ([zone, now, expiration]) => {
    await tab.emulateTimezone(zone);
    const script = await tab.evaluateOnNewDocument((now) => {
      const { Date: Real } = globalThis;
      globalThis.Date = class extends Real {
        constructor(...parts) {
          super(...(parts.length ? parts : [now]));
        }
        static now = () => now;
      };
    }, Date.parse(now));
    page.expiration = expiration;
    await page.open();
    await tab.removeScriptToEvaluateOnNewDocument(script.identifier);
    return tab.$eval("#rows .c-expires time", (time) => time.textContent);
  };
  await check("days are those of the calendar where the reader is", async () => {
    const wrong = [];
    for (const one of cases) {
      const text = await shown(one);
      if (text !== one[3]) wrong.push(`${one.join(" ")}: ${text}`);
    }
    assert.deepEqual(wrong, []);
  });
  await check("dates are in the reader's own language", async () => {
    await page.cdp.send("Emulation.setLocaleOverride", { locale: "de-DE" });
    assert.equal(await shown(cases[1]), "morgen");
    assert.match(await tab.$eval("#rows .c-expires .sub", (text) => text.textContent), /^11\.03\.2026, 23:59$/);
    assert.equal(await tab.$eval("#rows .c-expires time", (time) => time.lang), "de-DE");
    await page.cdp.send("Emulation.setLocaleOverride", {});
  });
  await page.context.close();
}

/** Small screens, and a font of the host. */
async function looks(site) {
  const page = (current = await site.page("looks", await site.signIn("mel")));
  const { tab } = page;
  for (const [width, height] of [[320, 568], [360, 640], [375, 667], [1280, 800]]) {
    await check(`the whole token is visible at ${width} pixels`, async () => {
      await tab.setViewport({ width, height });
      await page.open();
      await page.click("#generate");
      await page.see("#d-generate[open]");
      await page.fill("#g-name", `seen at ${width}`);
      await page.press("Enter");
      await page.see("#d-once[open]");
      await page.settled();
      for (const scheme of ["light", "dark"]) {
        await page.scheme(scheme);
        await screenshot(page, `once-${width}-${scheme}`);
      }
      await page.scheme("light");
      const seen = await tab.$eval("#once-token", (field) => {
        const box = field.getBoundingClientRect();
        const body = field.closest(".body").getBoundingClientRect();
        return {
          whole: field.scrollHeight <= field.clientHeight && field.scrollWidth <= field.clientWidth,
          inside: box.left >= 0 && box.right <= innerWidth && box.top >= body.top && box.bottom <= Math.min(body.bottom, innerHeight),
        };
      });
      assert.deepEqual(seen, { whole: true, inside: true });
      await page.takeToken();
    });
  }
  await tab.setViewport({ width: 1240, height: 860 });
  await check("a font of the host's own origin is loaded under the page's policy", async () => {
    const font = await readFile("/usr/share/fonts/opentype/inter/Inter-Thin.otf");
    const removeFont = page.intercept((_, path) => path === "/static/acme.otf", (request) => request.respond({ contentType: "font/otf", body: font }));
    const style = await (await fetch(site.url("style.css"))).text();
    const theme = '@font-face { font-family: Acme; src: url("/static/acme.otf"); } :root { --patkit-font: Acme; }';
    const removeStyle = page.intercept((_, path) => path.endsWith("/style.css"), (request) => request.respond({ contentType: "text/css", body: style + theme }));
    await page.open();
    const status = await page.read(async () => {
      await document.fonts.ready;
      return [...document.fonts].map(({ family, status }) => `${family} ${status}`);
    });
    assert.deepEqual(status, ["Acme loaded"]);
    assert.ok(page.requests.some(({ path }) => path === "/static/acme.otf"));
    removeFont();
    removeStyle();
  });
  await page.context.close();
}

/** Checks the watch itself, because it hides every violation that it misses. */
async function theWatch(site) {
  const page = (current = await site.page("watch", await site.signIn("mel")));
  await check("what breaks the policy would be noticed", async () => {
    await page.open();
    const before = site.complaints.length;
    await page.read(() => {
      const image = document.createElement("img");
      image.src = "https://elsewhere.invalid/x.png";
      const style = document.createElement("style");
      style.textContent = "p { color: red }";
      document.body.append(image, style);
      try {
        document.body.innerHTML += "<p>";
      } catch {
        // The policy requires this error.
      }
    });
    for (const part of ["img-src", "style-src", "require-trusted-types-for"]) {
      const deadline = Date.now() + PATIENCE;
      while (!site.complaints.slice(before).some((text) => text.includes(`policy violation: ${part}`))) {
        if (Date.now() > deadline) throw new Error(`${part}: ${site.complaints.slice(before)}`);
        await site.browser.version();
      }
    }
    site.complaints.length = before;
  });
  await page.context.close();
}

async function main() {
  await mkdir(screenshots, { recursive: true });
  const downloads = await mkdtemp(join(tmpdir(), "patkit-downloads."));
  const site = await Site.open(base, chromium, downloads);
  try {
    await check("the three files are small", async () => {
      const sizes = await Promise.all(["", "style.css", "script.js"].map(async (path) => {
        const answer = await fetch(site.url(path), { headers: { Cookie: await site.signIn("mel") } });
        assert.equal(answer.status, 200);
        return (await answer.arrayBuffer()).byteLength;
      }));
      const sum = sizes.reduce((sum, size) => sum + size, 0);
      assert.ok(sum < MOST_BYTES, `${sum} bytes`);
    });
    await check("the page names nothing outside its own folder", async () => {
      const html = await (await fetch(site.url(""), { headers: { Cookie: await site.signIn("mel") } })).text();
      const named = [...html.matchAll(/ (?:src|href)="([^"]*)"/g)].map((match) => match[1]).filter((name) => name && !name.startsWith("#"));
      assert.deepEqual(named.sort(), ["script.js", "style.css"]);
      assert.doesNotMatch(html, / style=| on[a-z]+=|<style|\{\{/);
    });
    const member = await aMember(site);
    await trouble(site, member);
    await aManager(site);
    await anAdmin(site);
    for (const part of [twoUsers, slowness, offers, calendars, looks]) await part(site);
    current = null;
    await check("no error, no violation, no request elsewhere, all the time", async () => {
      assert.deepEqual(site.complaints, []);
    });
    await theWatch(site);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  between the checks\n        ${error.stack}`);
  } finally {
    await site.browser.close();
    await rm(downloads, { recursive: true, force: true });
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed > 0 ? 1 : 0;
}

await main();
