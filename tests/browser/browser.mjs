// A browser and its pages for the checks in `console.mjs`: signs in, watches for what a page must
// not do, and waits. It contains no checks itself.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
// In milliseconds. Long, for a busy machine; a passing check never waits this long.
export const PATIENCE = 30_000;

export class Site {
  static async open(base, chromium, downloads) {
    const site = new Site();
    site.base = new URL(base);
    site.downloads = downloads;
    site.complaints = [];
    site.downloaded = [];
    site.browser = await puppeteer.launch({
      executablePath: chromium,
      args: ["--disable-dev-shm-usage", ...(process.getuid?.() === 0 ? ["--no-sandbox"] : [])],
      protocolTimeout: 2 * PATIENCE,
    });
    return site;
  }

  url(path) {
    return new URL(path, this.base).href;
  }

  /** Signs a user in and returns the cookie. */
  async signIn(user) {
    const answer = await fetch(this.url("/sign-in"), {
      method: "POST",
      redirect: "manual",
      headers: { "Sec-Fetch-Site": "same-origin", Origin: this.base.origin },
      body: new URLSearchParams({ user }),
    });
    const cookie = answer.headers.getSetCookie().map((text) => text.split(";")[0]).find((text) => text.startsWith("session="));
    if (!cookie) throw new Error(`${user} is not signed in: ${answer.status} ${await answer.text()}`);
    return cookie;
  }

  /** Sends a request of a signed-in user that does not come from the page, as from another tab. */
  async call(cookie, method, path, body) {
    const answer = await fetch(this.url(path), {
      method,
      headers: {
        Cookie: cookie,
        "Sec-Fetch-Site": "same-origin",
        Origin: this.base.origin,
        ...(body && { "Content-Type": "application/json" }),
      },
      body: body && JSON.stringify(body),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text && answer.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : text;
  }

  /** Returns the status of a request with this token. */
  async whoami(token) {
    return (await fetch(this.url("/demo/whoami"), { headers: { Authorization: `Bearer ${token}` } })).status;
  }

  /** Opens a page in a new context, which shares nothing with other pages. */
  async page(name, cookie) {
    const context = await this.browser.createBrowserContext();
    const page = new Page();
    page.site = this;
    page.name = name;
    page.context = context;
    page.allowed = [];
    page.seen = [];
    page.requests = [];
    page.rules = [];
    page.tab = await context.newPage();
    page.tab.setDefaultTimeout(PATIENCE);
    await page.tab.setViewport({ width: 1240, height: 860 });
    await page.scheme("light");
    if (cookie) {
      const [key, value] = cookie.split(/=(.*)/s);
      await context.setCookie({ name: key, value, domain: this.base.hostname, path: "/", httpOnly: true });
    }
    await page.watch();
    page.cdp = await page.tab.createCDPSession();
    const browser = await this.browser.target().createCDPSession();
    browser.on("Browser.downloadWillBegin", (event) => this.downloaded.push({ ...event, isDone: false }));
    browser.on("Browser.downloadProgress", (event) => {
      for (const one of this.downloaded) if (one.guid === event.guid) one.isDone ||= event.state === "completed";
    });
    await browser.send("Browser.setDownloadBehavior", {
      behavior: "allow",
      downloadPath: this.downloads,
      browserContextId: context.id,
      eventsEnabled: true,
    });
    return page;
  }
}

class Page {
  complain(what) {
    this.site.complaints.push(`${this.name}: ${what}`);
  }

  /** Records everything that a correct page never does. */
  async watch() {
    const { tab, site } = this;
    await tab.exposeFunction("noteViolation", (text) => this.complain(`policy violation: ${text}`));
    await tab.evaluateOnNewDocument(() => {
      addEventListener("securitypolicyviolation", (event) => {
        globalThis.noteViolation(`${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
      });
    });
    tab.on("pageerror", (error) => this.complain(`error: ${error}`));
    tab.on("dialog", (dialog) => {
      this.complain(`a ${dialog.type()} of the browser: ${dialog.message()}`);
      dialog.dismiss();
    });
    tab.on("console", (message) => {
      this.seen.push(message.text());
      const where = message.location().url ?? "";
      // The browser requests it by itself, and a host may have none.
      if (where.endsWith("/favicon.ico")) return;
      const isAllowed = this.allowed.some((text) => message.text().includes(text));
      if (!isAllowed) this.complain(`console ${message.type()}: ${message.text()} ${where}`);
    });
    await tab.setRequestInterception(true);
    tab.on("request", async (request) => {
      const url = new URL(request.url());
      this.requests.push({ method: request.method(), path: url.pathname, body: request.postData(), url: url.href });
      if (url.origin !== site.base.origin) this.complain(`a request to ${url.href}`);
      const rule = this.rules.find((rule) => rule.matches(request.method(), url.pathname));
      if (rule) await rule.answer(request);
      else await request.continue();
    });
  }

  /** Lets `answer` handle matching requests until the returned function is called. */
  intercept(matches, answer) {
    const rule = { matches, answer };
    this.rules.push(rule);
    return () => this.rules.splice(this.rules.indexOf(rule), 1);
  }

  /** Holds matching requests back until the returned function is called. */
  hold(matches) {
    let open;
    const gate = new Promise((resolve) => (open = resolve));
    const remove = this.intercept(matches, async (request) => {
      await gate;
      await request.continue();
    });
    return () => {
      remove();
      open();
    };
  }

  async scheme(value) {
    await this.tab.emulateMediaFeatures([
      { name: "prefers-color-scheme", value },
      { name: "prefers-reduced-motion", value: "reduce" },
    ]);
  }

  async open(path = "") {
    const answer = await this.tab.goto(this.site.url(path));
    await this.settled();
    return answer;
  }

  /** Waits until the list is shown and no pending request can change it. */
  async settled() {
    await this.until(() => {
      const isLoading = document.getElementById("loading").checkVisibility();
      return !isLoading && document.getElementById("panel").getAttribute("aria-busy") === "false";
    });
  }

  until(condition, ...values) {
    return this.tab.waitForFunction(condition, { polling: "raf" }, ...values);
  }

  see(selector) {
    return this.tab.waitForSelector(selector, { visible: true });
  }

  miss(selector) {
    return this.tab.waitForSelector(selector, { hidden: true });
  }

  read(what, ...values) {
    return this.tab.evaluate(what, ...values);
  }

  text(selector) {
    return this.tab.$eval(selector, (element) => element.textContent);
  }

  isVisible(selector) {
    return this.tab.$eval(selector, (element) => element.checkVisibility());
  }

  click(selector) {
    return this.tab.click(selector);
  }

  press(...keys) {
    return keys.reduce((before, key) => before.then(() => this.tab.keyboard.press(key)), Promise.resolve());
  }

  type(text) {
    return this.tab.keyboard.type(text);
  }

  async fill(selector, text) {
    await this.tab.$eval(selector, (field) => {
      field.focus();
      field.select();
    });
    await this.press("Backspace");
    await this.type(text);
  }

  /** Returns the row of this name once it is in this state. */
  async row(name, state) {
    await this.settled();
    const found = await this.until(
      (name, state) =>
        [...document.querySelectorAll("#rows tr")].find(
          (row) => row.querySelector(".name strong").textContent === name && (!state || row.dataset.state === state),
        ),
      name,
      state,
    );
    return found.asElement();
  }

  /** Waits until the server has stored the last use of a token, which it does every few seconds. */
  async used(name) {
    await this.until(async (name) => {
      const { content: api } = document.querySelector('meta[name="patkit-api"]');
      const { items } = await (await fetch(`${api}/user-tokens`)).json();
      return items.find((token) => token.name === name)?.last_used;
    }, name);
  }

  async gone(name) {
    await this.until(
      (name) => ![...document.querySelectorAll("#rows .name strong")].some((text) => text.textContent === name),
      name,
    );
    await this.settled();
  }

  async act(name, action, state) {
    const row = await this.row(name, state);
    const button = await row.$(`[data-action="${action}"]`);
    await button.click();
  }

  async actions(name, state) {
    const row = await this.row(name, state);
    return row.$$eval("button[data-action]", (buttons) => buttons.map((button) => button.dataset.action).sort().join(" "));
  }

  /** Confirms the dialog and waits for the result. */
  async confirm() {
    await this.see("#d-confirm[open]");
    await this.click("#d-confirm [type=submit]");
    await this.miss("#d-confirm");
    await this.settled();
  }

  /** Returns the shown token and closes the dialog. */
  async takeToken() {
    await this.see("#d-once[open]");
    const token = await this.tab.$eval("#once-token", (field) => field.value);
    await this.settled();
    await this.click("#d-once [type=submit]");
    await this.miss("#d-once");
    return token;
  }

  /** Generates a token with only a name and returns its text. */
  async generate(name) {
    await this.click("#generate");
    await this.see("#d-generate[open]");
    await this.fill("#g-name", name);
    await this.press("Enter");
    return this.takeToken();
  }

  /** Presses Tab until the element has the focus, and fails if the focus is not visible. */
  async tabTo(selector) {
    for (let step = 0; step < 150; step += 1) {
      await this.press("Tab");
      const found = await this.read((selector) => {
        const at = document.activeElement;
        if (!at?.matches(selector)) return null;
        // A choice shows the focus of its button.
        const shown = at.closest(".choices label, .option") ?? at;
        const { outlineStyle, outlineWidth } = getComputedStyle(shown);
        return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 ? "shown" : "hidden";
      }, selector);
      if (found === "hidden") throw new Error(`nothing shows that ${selector} has the focus`);
      if (found === "shown") return;
    }
    throw new Error(`Tab does not lead to ${selector}`);
  }

  focused(selector) {
    return this.until((selector) => document.activeElement?.matches(selector), selector);
  }

  /**
   * Returns the violations that axe-core finds. It runs in an isolated world, so that the page's
   * policy stays in force.
   */
  async violations() {
    const { frameTree } = await this.cdp.send("Page.getFrameTree");
    const { executionContextId: contextId } = await this.cdp.send("Page.createIsolatedWorld", {
      frameId: frameTree.frame.id,
      worldName: "axe",
    });
    const run = async (expression) => {
      const { result, exceptionDetails } = await this.cdp.send("Runtime.evaluate", {
        expression,
        contextId,
        awaitPromise: true,
        returnByValue: true,
      });
      if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
      return result.value;
    };
    await run(`${AXE}; undefined`);
    const found = await run(`axe.run(document, { resultTypes: ["violations"] }).then(({ violations, passes }) => ({
      rules: passes.length,
      violations: violations.flatMap(({ id, nodes }) =>
        nodes.map(({ target, failureSummary }) => id + " at " + target + ": " + failureSummary)),
    }))`);
    if (found.rules < 10) throw new Error(`axe-core looked at ${found.rules} rules only`);
    return found.violations;
  }
}
