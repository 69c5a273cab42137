// The settings page: lists tokens, and offers the operations that their state allows. Text from
// others is always inserted as text, never as HTML.

const API = document.querySelector('meta[name="patkit-api"]').content.replace(/\/+$/, "");
const SIGN_IN = document.querySelector('meta[name="patkit-sign-in"]').content;
const PAGE = 50;
const MOST = 200; // the API's limit for one page
const MOST_DAYS = 365;
const SOON = 7; // days before its expiry from which on a token is highlighted
const SHOWN_SCOPES = 6;

const $ = (id) => document.getElementById(id);
const dialogs = { generate: $("d-generate"), edit: $("d-edit"), confirm: $("d-confirm"), once: $("d-once") };

let settings = null;
let marker = null; // the server's marker of the user of this page
let again = null; // the action of the button "Try again"
let changing = 0; // the number of pending requests that change something
let tab = "personal";
let tokens = [];
let cursor = null;
let turn = 0; // counts the loads, so that the result of an earlier one is discarded
let place = null; // {id, action}: where the focus returns after a dialog is closed
let confirmed = null; // {action, token}: the operation to confirm
let edited = null;
let secret = null; // {text, name, url}: the token that is shown; kept nowhere else

// --- The API ---

class Problem extends Error {
	/** `fields`: the messages for fields of the request. */
	constructor(status, text, code, fields = []) {
		super(text);
		Object.assign(this, { status, code, fields });
	}
}

const OTHER_USER = "Somebody else has signed in since this page was loaded. Nothing of theirs is shown here, and nothing was changed for them.";
const SIGNED_OUT = "You are signed out.";
const AGAIN = "Please try again in a moment.";
const MAY_BE_DONE = "It may still have been done. Look at the list before you try again.";

/**
 * Texts of problems by code, or else by status. The server's own texts are for authors of clients,
 * except those at fields.
 */
const SENTENCES = {
	cross_site: "This site is not set up to take changes from this address. Please tell the people who run it.",
	recent_sign_in_required: "Sign in again first. Your last sign-in is too long ago for this.",
	name_taken: "Another of these tokens has this name. Choose a different one.",
	state: "This token has changed since the list was loaded, and no longer allows this.",
	too_many_tokens: "There are as many tokens as are allowed. Revoke one that is no longer needed first.",
	contended: `Somebody else changed this token at the same moment. ${AGAIN}`,
	outcome_unknown: `The server could not find out whether this was done. ${MAY_BE_DONE}`,
	invalid: "Something that was entered is not accepted. Check it and try again.",
	403: "You may not do this. Ask an administrator if you need to.",
	404: "This token is gone. Somebody may have deleted it.",
	409: "This conflicts with an earlier change. Look at the list again.",
	412: "This token has changed since the list was loaded. Look at it again first.",
	413: "This is too much text. Shorten it.",
	429: `This was tried too often in a short time. ${AGAIN}`,
	503: `The server is busy. ${AGAIN}`,
};
const FIELDS = {
	name: "This name is not accepted. Use 1 to 255 characters, at least one that shows, and none that is invisible.",
	description: "This description is not accepted. Use at most 1,000 characters, and none that is invisible.",
	expires_in_days: "This lifetime is not allowed. Choose another.",
	scopes: "These permissions are not accepted. Check how they are spelled.",
	allowed_networks: "Not every line is a network. Write each one like 203.0.113.0/24.",
	user_id: "No service user with this id may have tokens. Check the id.",
	overlap_seconds: "The old token may not work for so long. Choose a shorter time.",
};
const SAME_FIELD = { expires_at: "expires_in_days", expires_in_seconds: "expires_in_days", scim_endpoints_only: "scopes" };

const sentence = (text) => text.trim().replace(/^./u, (first) => first.toUpperCase()).replace(/[^.!?…]$/u, "$&.");

/**
 * The refused fields: `errors` of the answer by their pointers (RFC 6901), or else its one `field`.
 */
function refusals(said, body) {
	const listed = Array.isArray(said?.errors) ? said.errors : [];
	const all = listed.length ? listed : said?.field ? [{ pointer: said.field }] : [];
	return all.map(({ pointer, detail }) => {
		const [, field, index] = /^#?\/?([a-z_]+)(?:[/[.](\d+))?/.exec(String(pointer)) ?? [];
		const name = SAME_FIELD[field] ?? field;
		const entry = body?.[field]?.[index];
		const text = typeof detail === "string" && detail.trim() ? sentence(detail) : FIELDS[name];
		return { name, text: (typeof entry === "string" ? `${quoted(entry)}: ` : "") + (text ?? SENTENCES.invalid) };
	});
}

function problemOf(answer, said, body) {
	const { status } = answer;
	const code = typeof said?.code === "string" ? said.code : undefined;
	if (code === "user_changed") return new Problem(412, OTHER_USER, code);
	if (status === 401) return new Problem(401, SIGNED_OUT);
	let text = SENTENCES[Object.hasOwn(SENTENCES, code) ? code : status] ?? `The server did not do this (${status}). Please try again later.`;
	const wait = Number(answer.headers.get("Retry-After"));
	if (status === 429 && wait > 60) text = text.replace(AGAIN, `Please try again ${relation.format(Math.ceil(wait / 60), "minute")}.`);
	if (code === "name_taken") return new Problem(status, text, code, [{ name: "name", text }]);
	return new Problem(status, text, code, refusals(said, body));
}

/**
 * Whether an answer is for another user than this page, by its header, or by its tokens if a proxy
 * removed the header.
 */
function isForeign(answer, said) {
	const from = answer.headers.get("Patkit-User");
	if (from && marker) return from !== marker;
	const held = said?.items ?? [said];
	return Boolean(settings) && held.some((token) => token?.kind === "personal" && token.user && token.user.id !== settings.user.id);
}

async function call(method, url, body) {
	const changes = method !== "GET";
	if (changes && !navigator.onLine) throw new Problem(0, "You are offline, so nothing was sent. Try again once you are connected.");
	changing += changes;
	try {
		const answer = await fetch(url, {
			method,
			credentials: "same-origin",
			cache: "no-store",
			redirect: "manual", // for example, to a sign-in page
			headers: { Accept: "application/json", ...(body && { "Content-Type": "application/json" }), ...(marker && { "Patkit-User": marker }) },
			body: body && JSON.stringify(body),
			signal: AbortSignal.timeout(30_000),
		});
		if (answer.type === "opaqueredirect") throw new Problem(401, SIGNED_OUT);
		const said = answer.status === 204 ? null : await answer.json().catch(() => undefined);
		if (!answer.ok) throw problemOf(answer, said, body);
		if (isForeign(answer, said)) throw new Problem(412, changes ? `Somebody else has signed in since this page was loaded. ${MAY_BE_DONE}` : OTHER_USER, "user_changed");
		// For example, the page of a proxy, or a sign-in page.
		if (said === undefined) throw new Problem(0, `The server’s answer could not be read. ${changes ? MAY_BE_DONE : "You may be signed out."}`, "unreadable");
		marker ??= answer.headers.get("Patkit-User");
		return said;
	} catch (error) {
		if (error instanceof Problem) throw error;
		throw new Problem(0, navigator.onLine ? `The server did not answer. ${changes ? MAY_BE_DONE : AGAIN}` : `The connection is lost. ${changes ? MAY_BE_DONE : "Try again once you are connected."}`);
	} finally {
		changing -= changes;
	}
}

const tokenUrl = (token, rest = "") => `${API}/user-tokens/${encodeURIComponent(token.id)}${rest}`;

// --- Text ---

// In the language and time zone of the reader.
const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const minutes = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
const { locale: LOCALE } = dates.resolvedOptions();
const relation = new Intl.RelativeTimeFormat(LOCALE, { numeric: "auto" });
const DAY = 86_400_000;

/** The number of the reader's calendar day of a time. Not every such day has 24 hours. */
const dayOf = (time) => Math.round(Date.UTC(time.getFullYear(), time.getMonth(), time.getDate()) / DAY);

/** Whole calendar months from one time to another, rounded toward zero. */
function monthsBetween(from, to) {
	const months = (to.getFullYear() - from.getFullYear()) * 12 + to.getMonth() - from.getMonth();
	const rest = to.getDate() - from.getDate();
	return months - (months > 0 && rest < 0 ? 1 : months < 0 && rest > 0 ? -1 : 0);
}

/** Minutes within an hour, hours within the calendar day, or else calendar days, months or years. */
function relative(date) {
	const now = new Date();
	const left = (date - now) / 60_000;
	const past = left < 0;
	if (Math.abs(left) < 1) {
		if (!LOCALE.startsWith("en")) return relation.format(0, "second");
		return past ? "just now" : "in less than a minute";
	}
	if (Math.abs(left) < 60) return relation.format(Math.trunc(left), "minute");
	const days = dayOf(date) - dayOf(now);
	if (days === 0) return relation.format(Math.trunc(left / 60), "hour");
	if (Math.abs(days) < 100) return relation.format(days, "day");
	const months = monthsBetween(now, date);
	return Math.abs(months) < 24 ? relation.format(months, "month") : relation.format(Math.trunc(months / 12), "year");
}

// For live regions and labels, where no element isolates the direction of a name.
const quoted = (name) => `“\u2068${name}\u2069”`;
const lines = (text) => text.split(/[\s,]+/).filter(Boolean);

function element(name, className, text) {
	const made = document.createElement(name);
	if (className) made.className = className;
	if (text) made.textContent = text;
	return made;
}

function icon(name) {
	const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
	const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
	svg.setAttribute("class", "icon");
	svg.setAttribute("aria-hidden", "true");
	use.setAttribute("href", `#i-${name}`);
	svg.append(use);
	return svg;
}

/** A time as text, with the exact time as its tooltip. */
function stamp(text, className, format) {
	const date = new Date(text);
	const time = element("time", className, format(date));
	time.dateTime = text;
	time.title = exact.format(date);
	time.lang = LOCALE;
	return time;
}

const since = (text, className = "") => stamp(text, `since ${className}`, relative);

function keepTimesTrue() {
	for (const time of document.querySelectorAll("time.since")) {
		time.textContent = relative(new Date(time.dateTime));
	}
}

// --- Messages ---

let fading;
function announce(text) {
	clearTimeout(fading);
	$("toast").textContent = text;
	fading = setTimeout(() => ($("toast").textContent = ""), 8000);
}

/**
 * Shows a problem and how to go on. A link from a dialog opens another tab, so that the form keeps
 * its input.
 */
function explain(region, problem, retry) {
	region.replaceChildren(problem.message);
	const isSignedOut = problem.status === 401;
	if (isSignedOut || ["recent_sign_in_required", "unreadable"].includes(problem.code)) {
		const isKept = region !== $("alert");
		if (SIGN_IN) {
			const link = element("a", "", isKept ? "Sign in (opens a new tab)" : "Sign in");
			link.href = SIGN_IN;
			if (isKept) Object.assign(link, { target: "_blank", rel: "noopener" });
			region.append(" ", link);
		} else if (isSignedOut) region.append(" Sign in in another tab.");
		if (isKept && isSignedOut) region.append(" Then come back and try again: what you entered is still here.");
	}
	if (!retry) return;
	const button = element("button", "", retry === reload ? "Load the page again" : "Try again");
	button.type = "button";
	button.addEventListener("click", retry);
	region.append(" ", button);
}

const reload = () => location.reload();

/** Hides all tokens and the user's name, because another person may look at the page now. */
function hideTokens() {
	turn += 1;
	tokens = [];
	$("rows").replaceChildren();
	$("console").hidden = true;
	$("user").hidden = true;
}

/** Shows a problem on the page itself. `retry` is the action that the reader may take. */
function complain(problem, retry = null) {
	const isForeign = problem.code === "user_changed";
	const isSignedOut = problem.status === 401;
	again = isForeign ? reload : (retry ?? (isSignedOut ? resume : null));
	explain($("alert"), problem, again);
	if (!isForeign && !isSignedOut) return;
	hideTokens();
	if (isForeign) for (const dialog of Object.values(dialogs)) if (dialog !== dialogs.once) dialog.close();
	if (!document.querySelector("dialog[open]")) ($("alert").querySelector("a, button") ?? $("alert")).focus();
}

function asProblem(error) {
	if (error instanceof Problem) return error;
	console.error(error);
	return new Problem(0, "Something is wrong with this page. Load it again; if that does not help, tell the people who run the site.", "page");
}

function calm() {
	$("alert").replaceChildren();
	again = null;
}

/** Continues where the page stopped. */
function resume() {
	calm();
	return settings ? load() : start();
}

// --- The list ---

function show(part) {
	for (const id of ["list", "loading", "empty", "broken"]) $(id).hidden = id !== part;
}

async function fetchPage(limit, from) {
	const query = new URLSearchParams({ limit });
	if (from) query.set("cursor", from);
	return call("GET", `${API}/user-tokens${tab === "service" ? "/service" : ""}?${query}`);
}

/** Loads the list again, as far as it is shown. */
async function load() {
	const mine = ++turn;
	const wanted = Math.max(PAGE, tokens.length);
	const read = [];
	let next = null;
	$("panel").setAttribute("aria-busy", "true");
	try {
		do {
			const page = await fetchPage(Math.min(MOST, wanted - read.length), next);
			if (mine !== turn) return;
			read.push(...page.items);
			next = page.next ?? null;
		} while (next && read.length < wanted);
		tokens = read;
		cursor = next;
		$("console").hidden = false;
		$("user").hidden = false;
		render();
	} catch (error) {
		if (mine !== turn) return;
		complain(asProblem(error), resume);
		if (tokens.length === 0) show("broken");
	} finally {
		if (mine === turn) $("panel").setAttribute("aria-busy", "false");
	}
}

async function loadMore() {
	const mine = turn;
	const button = $("load-more");
	if (button.ariaDisabled === "true") return;
	button.ariaDisabled = "true";
	try {
		const page = await fetchPage(PAGE, cursor);
		if (mine !== turn) return;
		const fresh = page.items;
		tokens.push(...fresh);
		cursor = page.next ?? null;
		$("rows").append(...fresh.map(row));
		$("more").hidden = cursor === null;
		if (fresh.length > 0) find(fresh[0].id)?.querySelector("button.act").focus();
		announce(`${fresh.length} more shown, ${tokens.length} in all.`);
	} catch (error) {
		if (mine === turn) complain(asProblem(error));
	} finally {
		button.ariaDisabled = "false";
	}
}

const find = (id) => $("rows").querySelector(`tr[data-id="${CSS.escape(id)}"]`);

function render() {
	const { activeElement: at } = document;
	const held = at?.closest("#rows tr");
	if (held) place = { id: held.dataset.id, action: at.dataset.action, index: held.sectionRowIndex };
	$("rows").replaceChildren(...tokens.map(row));
	$("more").hidden = cursor === null;
	show(tokens.length ? "list" : "empty");
	if (!document.querySelector("dialog[open]")) returnFocus();
}

/** Returns the focus to the last action of the reader, or to the nearest one that is left. */
function returnFocus() {
	const { activeElement: at, body } = document;
	// The focus on a dialog that was just closed counts as no focus.
	if (!place || (at && at !== body && at.checkVisibility())) return;
	const rows = $("rows").rows;
	const near = find(place.id) ?? rows[Math.min(place.index ?? 0, rows.length - 1)];
	const target = near?.querySelector(`[data-action="${place.action}"]`) ?? near?.querySelector("button.act") ?? $("generate");
	target.focus();
}

function actionsOf(token) {
	const lasting = token.successor || settings.final_reasons.includes(token.revoked?.reason);
	const all = {
		active: [!token.successor && "rotate", "edit", "revoke"],
		ended: ["edit", "revoke"],
		revoked: [!lasting && "restore", "edit", "delete"],
		expired: ["edit", "delete"],
	};
	return (all[token.state] ?? ["edit"]).filter(Boolean);
}

const LABELS = { rotate: "Rotate", edit: "Edit", revoke: "Revoke", restore: "Restore", delete: "Delete" };
const STATES = { active: "Active", revoked: "Revoked", expired: "Expired", ended: "No longer accepted" };
const REASONS = {
	owner: "by its owner",
	admin: "by an administrator",
	system: "by the system",
	offboarding: "with all tokens of its owner",
	idle: "because it was not used for long",
	rotated: "when it was rotated",
	reuse: "because a rotated token was used again",
	suspected: "because the token that it came from may have leaked",
	compromised: "because it may have leaked",
};

function row(token) {
	const made = $("t-row").content.firstElementChild.cloneNode(true);
	const part = (selector) => made.querySelector(selector);
	made.dataset.id = token.id;
	made.dataset.state = token.state;
	part(".name strong").textContent = token.name;
	part(".pill").textContent = STATES[token.state] ?? token.state;
	part(".about").textContent = token.description ?? "";
	if (token.revoked) {
		const { at, by, reason } = token.revoked;
		part(".revoked").append("Revoked ", since(at), ` ${REASONS[reason] ?? `(${reason})`}`);
		if (by.owner && by.owner !== token.user?.id) part(".revoked").append(", ", element("bdi", "", by.owner));
		if (by.token) part(".revoked").append(", through a token");
	} else if (token.successor) {
		part(".revoked").append("Rotated: another token took its place");
	}
	part(".chips").append(...chips(token));
	if (token.allowed_networks?.length) part(".networks").textContent = `Only from ${token.allowed_networks.join(", ")}`;
	part("td.c-owner").append(...owner(token.user ?? { id: "Unknown" }));
	part(".c-expires").append(...expiry(token));
	part(".c-used").append(...used(token));
	part(".c-created").append(stamp(token.created, "", (date) => dates.format(date)));
	part("td.c-actions").append(
		...actionsOf(token).map((action) => {
			const button = element("button", `act${action === "revoke" || action === "delete" ? " takes" : ""}`);
			button.type = "button";
			button.dataset.action = action;
			nameButton(button, LABELS[action], token);
			button.append(icon(action), LABELS[action]);
			if (action === "restore" && restoring.has(token.id)) button.ariaDisabled = "true";
			button.addEventListener("click", () => act(action, token, button));
			return button;
		}),
	);
	return made;
}

/** Sets a label that screen readers speak out of context. It begins with the visible text. */
const nameButton = (button, text, token) => button.setAttribute("aria-label", `${text} ${quoted(token.name)}`);

function chips({ scopes, name: of }) {
	const chip = (text, plain) => {
		const item = element("li");
		item.append(element("span", plain ? "chip plain" : "chip", text));
		return item;
	};
	if (!scopes) return [chip("All permissions", true)];
	if (scopes.length === 0) return [chip("No permissions", true)];
	if (scopes.length === 1 && scopes[0] === "scim:*") return [chip("SCIM endpoints only", true)];
	const items = scopes.map((scope) => chip(scope));
	if (items.length <= SHOWN_SCOPES + 1) return items;
	const all = element("li");
	const button = element("button", "chip plain", `${items.length - SHOWN_SCOPES} more`);
	button.type = "button";
	nameButton(button, `${button.textContent} permissions of`, { name: of });
	button.addEventListener("click", () => {
		const rest = items.slice(SHOWN_SCOPES);
		all.replaceWith(...rest);
		rest[0].tabIndex = -1;
		rest[0].focus();
	});
	all.append(button);
	return [...items.slice(0, SHOWN_SCOPES), all];
}

function owner(user) {
	const name = element("bdi", "main", user.name || user.id);
	return !user.name || user.name === user.id ? [name] : [name, element("bdi", "sub", user.id)];
}

function expiry(token) {
	if (!token.expiration) return ["Never"];
	const date = new Date(token.expiration);
	const soon = token.state === "active" && dayOf(date) - dayOf(new Date()) <= SOON;
	return [since(token.expiration, soon ? "soon" : ""), element("span", "sub", minutes.format(date))];
}

function used(token) {
	if (!token.last_used) return [element("span", "muted", "Not used")];
	const from = token.last_used_address;
	return [since(token.last_used), ...(from ? [element("span", "sub", `from ${from}`)] : [])];
}

// --- Tabs ---

const tabButtons = [...$("tabs").children];

function choose(kind) {
	tab = kind;
	tokens = [];
	cursor = null;
	place = null;
	const isService = kind === "service";
	for (const button of tabButtons) {
		const isChosen = button.dataset.tab === kind;
		button.ariaSelected = String(isChosen);
		button.tabIndex = isChosen ? 0 : -1;
	}
	$("panel").className = kind;
	$("panel").setAttribute("aria-labelledby", `tab-${kind}`);
	$("lead").textContent = isService
		? "Service tokens act as a service user, for machines that belong to nobody in particular."
		: "Let scripts and tools use the API in your name. Treat a token like a password.";
	$("empty-title").textContent = isService ? "No service tokens yet" : "No tokens yet";
	$("empty-text").textContent = isService
		? "Generate one, so that no machine depends on somebody’s own account."
		: "Generate one to use the API from a script, a pipeline or a tool on your machine.";
	calm();
	$("more").hidden = true;
	$("rows").replaceChildren();
	show("loading");
	return load();
}

function moveTab(event) {
	const [first, last] = tabButtons;
	const other = event.target === first ? last : first;
	const to = { ArrowRight: other, ArrowLeft: other, Home: first, End: last }[event.key];
	if (!to) return;
	event.preventDefault();
	to.focus();
	to.click();
}

// --- Dialogs ---

function open(dialog, focused) {
	for (const form of dialog.querySelectorAll("form")) form.reset();
	clear(dialog);
	dialog.showModal();
	dialog.querySelector(".body").scrollTop = 0;
	focused.focus();
}

const isBusy = (dialog) => dialog.querySelector("footer").ariaBusy === "true";

function clear(dialog) {
	for (const text of dialog.querySelectorAll(".problem, .error")) text.replaceChildren();
	for (const input of dialog.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

/** Shows each refusal at its field, or else at the top, and focuses the first such field. */
function blame(dialog, problem) {
	const said = new Map();
	for (const { name, text } of problem.fields) {
		const field = name && dialog.querySelector(`.field[data-field="${name}"]:not([hidden])`);
		said.set(field, [...(said.get(field) ?? []), text]);
	}
	const rest = said.get(null) ?? said.get(undefined);
	if (said.size === 0 || rest) explain(dialog.querySelector(".problem"), rest ? new Problem(problem.status, rest.join(" "), problem.code) : problem);
	const fields = [...dialog.querySelectorAll(".field")].filter((field) => said.has(field));
	for (const field of fields.reverse()) {
		if (field.tagName === "DETAILS") field.open = true;
		field.querySelector(".error").textContent = said.get(field).join(" ");
		const visible = [...field.querySelectorAll("input, textarea")].filter((input) => input.checkVisibility());
		const input = visible.find((input) => !["radio", "checkbox"].includes(input.type)) ?? visible.find((input) => input.checked);
		input?.setAttribute("aria-invalid", "true");
		input?.focus();
	}
}

function setBusy(dialog, isBusy) {
	dialog.querySelector("footer").setAttribute("aria-busy", isBusy);
	// Prevents browsers that support `closedby` from closing the dialog in other ways.
	if (isBusy) dialog.setAttribute("closedby", "none");
	else dialog.removeAttribute("closedby");
}

/**
 * Sends a form, one request at a time. `task` closes the dialog, or throws a problem to show in it.
 */
function onSubmit(dialog, task) {
	dialog.addEventListener("submit", async (event) => {
		event.preventDefault();
		if (isBusy(dialog)) return;
		clear(dialog);
		setBusy(dialog, true);
		try {
			await task(event.target.elements);
		} catch (error) {
			const problem = asProblem(error);
			if (problem.status === 401 || problem.code === "user_changed") complain(problem);
			if (problem.code !== "user_changed") blame(dialog, problem);
		} finally {
			setBusy(dialog, false);
		}
	});
}

for (const dialog of [dialogs.generate, dialogs.edit, dialogs.confirm]) {
	// Ignored while a request is pending, because its result would have no place.
	const close = (event) => {
		event.preventDefault();
		if (!isBusy(dialog)) dialog.close();
	};
	dialog.addEventListener("cancel", close);
	// A second Escape closes a dialog even if `cancel` is prevented, unless the key itself is.
	dialog.addEventListener("keydown", (event) => event.key === "Escape" && isBusy(dialog) && event.preventDefault());
	for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", close);
	dialog.addEventListener("close", () => {
		// For example, by a gesture of the system. A task that closes its dialog ends before this event.
		if (isBusy(dialog)) {
			dialog.showModal();
			dialog.querySelector("[type=submit]").focus();
		} else if (!document.querySelector("dialog[open]")) returnFocus();
	});
}

// --- Generate ---

function radios(box, name, choices, chosen) {
	box.replaceChildren(
		...choices.map(([value, text]) => {
			const label = element("label");
			const input = element("input");
			Object.assign(input, { type: "radio", name, value, defaultChecked: value === chosen });
			label.append(input, text);
			return label;
		}),
	);
}

function askGenerate() {
	const { policy, service_users: users = [] } = settings;
	const isService = tab === "service";
	const longest = Math.min(MOST_DAYS, policy.longest_days ?? MOST_DAYS);
	const isNever = policy.never && !policy.longest_days;
	const days = policy.lifetimes.filter((days) => days !== null && days <= longest);
	const choices = [...days.map((days) => [String(days), `${days} day${days === 1 ? "" : "s"}`]), ["custom", "Custom"]];
	if (isNever) choices.push(["never", "Never"]);
	const byDefault = String(policy.default_days ?? "never");
	const isListed = choices.some(([value]) => value === byDefault);
	radios($("g-lifetimes"), "lifetime", choices, isListed ? byDefault : "custom");
	$("g-days").max = longest;
	$("g-days").defaultValue = Math.min(longest, policy.default_days ?? longest);

	dialogs.generate.querySelector('[data-field="user_id"]').hidden = !isService;
	$("g-users").replaceChildren(
		...users.map((user) => {
			const option = element("option", "", user.name ?? user.id);
			option.value = user.id;
			return option;
		}),
	);
	$("d-generate-title").textContent = isService ? "Generate a service token" : "Generate a token";
	$("g-all").textContent = isService ? "Everything the service user may do" : "Everything I may do";
	$("g-all-hint").textContent = isService
		? "Follows the permissions of the service user, also when they change."
		: "Follows your own permissions, also when they change.";
	drawScopes();
	dialogs.generate.querySelector("details").open = false;
	open(dialogs.generate, isService ? $("g-user") : $("g-name"));
	chooseInGenerate();
	refresh();
}

/** Offers the scopes that the actor may grant. Keeps those ticked that are still offered. */
function drawScopes() {
	const { scopes = [], may } = settings;
	const ticked = ticks();
	$("g-scim").hidden = !may.scim;
	$("g-scopes").replaceChildren(
		...scopes.map((scope) => {
			const label = element("label");
			const input = element("input");
			Object.assign(input, { type: "checkbox", name: "scopes", value: scope, checked: ticked.includes(scope) });
			label.append(input, element("span", "", scope));
			return label;
		}),
	);
	$("g-scopes").hidden = scopes.length === 0;
	$("g-example").hidden = scopes.length === 0;
	$("g-example").lastElementChild.textContent = scopes[0] ?? "";
	document.querySelector('label[for="g-more"]').textContent = scopes.length ? "Other permissions" : "Permissions";
}

const ticks = () => [...$("g-scopes").querySelectorAll(":checked")].map((input) => input.value);

/** Loads the settings again, because the actor's permissions may have changed. */
async function refresh() {
	const before = JSON.stringify([settings.scopes, settings.may]);
	try {
		settings = await call("GET", SETTINGS);
		if (JSON.stringify([settings.scopes, settings.may]) !== before) drawScopes();
	} catch (error) {
		if (error.status === 401 || error.code === "user_changed") complain(asProblem(error));
	}
}

const covers = (grant, other) => grant === other || (grant.endsWith("*") && other.startsWith(grant.slice(0, -1)));

/** Updates what depends on the chosen options. */
function chooseInGenerate() {
	const { lifetime, scope, days } = dialogs.generate.querySelector("form").elements;
	const isNever = lifetime.value === "never";
	const isCustom = lifetime.value === "custom";
	$("g-custom").hidden = !isCustom;
	$("g-only").hidden = scope.value !== "only";
	const number = isCustom ? days.valueAsNumber : Number(lifetime.value);
	const isGood = Number.isInteger(number) && number >= 1 && number <= Number(days.max);
	const until = isGood ? `Works until ${minutes.format(Date.now() + number * DAY)}.` : "";
	const hint = isNever ? "" : until || `From 1 to ${days.max} days.`;
	if ($("g-days-hint").textContent !== hint) $("g-days-hint").textContent = hint;
	if (isNever === ($("g-never").childElementCount > 0)) return;
	$("g-never").replaceChildren();
	if (!isNever) return;
	const text = "It works until somebody revokes it. If it leaks and nobody notices, it stays open: a date is safer.";
	$("g-never").append(icon("warning"), element("span", "", text));
}

const refusal = (name, text) => new Problem(422, text, "invalid", [{ name, text }]);

function checkedName(text) {
	const name = text.trim();
	if (!name) throw refusal("name", "The name is missing. Give the token a name.");
	if ([...name].length > 255) throw refusal("name", "This name is too long. Use at most 255 characters.");
	return name;
}

/** Loads the list, which may be stale, unless the problem is one of the form or the session. */
function refreshed(problem) {
	if (![401, 422].includes(problem.status) && problem.code !== "user_changed") load();
	return problem;
}

onSubmit(dialogs.generate, async (form) => {
	const body = {};
	if (tab === "service") {
		body.user_id = form.user_id.value.trim();
		if (!body.user_id) throw refusal("user_id", "Say which service user the token is for.");
	}
	body.name = checkedName(form.name.value);
	if (form.description.value.trim()) body.description = form.description.value.trim();
	const lifetime = form.lifetime.value;
	body.expires_in_days = lifetime === "never" ? null : lifetime === "custom" ? form.days.valueAsNumber : Number(lifetime);
	if (lifetime === "custom" && !(Number.isInteger(body.expires_in_days) && form.days.validity.valid)) {
		throw refusal("expires_in_days", `This lifetime is not allowed. Enter whole days, from 1 to ${form.days.max}.`);
	}
	if (form.scope.value === "scim") body.scim_endpoints_only = true;
	if (form.scope.value === "only") {
		body.scopes = [...new Set([...ticks(), ...lines(form.more.value)])];
		if (body.scopes.length === 0) throw refusal("scopes", "Choose at least one permission.");
		// A service token acts as another user, whose permissions only the server knows.
		const { holds } = settings;
		const lacks = tab === "personal" && holds && body.scopes.filter((scope) => !holds.some((held) => covers(held, scope)));
		if (lacks?.length) throw refusal("scopes", `You do not have ${lacks.map(quoted).join(", ")} yourself, so your token can’t have it.`);
	}
	if (form.networks.value.trim()) body.allowed_networks = lines(form.networks.value);
	let made;
	try {
		made = await call("POST", `${API}/user-tokens`, body);
	} catch (error) {
		throw refreshed(error);
	}
	dialogs.generate.close();
	showOnce(made);
	load();
});

// --- Edit ---

function askEdit(token) {
	edited = token;
	const { elements } = dialogs.edit.querySelector("form");
	elements.name.defaultValue = token.name;
	elements.description.defaultValue = token.description ?? "";
	$("e-id").textContent = token.id;
	$("d-edit-title").textContent = `Edit ${quoted(token.name)}`;
	nameButton(dialogs.edit.querySelector("[type=submit]"), "Save", token);
	open(dialogs.edit, elements.name);
	elements.name.select();
}

onSubmit(dialogs.edit, async (form) => {
	const name = checkedName(form.name.value);
	const description = form.description.value.trim();
	const body = {};
	if (name !== edited.name) body.name = name;
	if (description !== (edited.description ?? "")) body.description = description;
	if (Object.keys(body).length === 0) return dialogs.edit.close();
	try {
		await call("PUT", tokenUrl(edited), body);
	} catch (error) {
		if (error.status !== 404) throw refreshed(error);
		return giveUp(dialogs.edit, error);
	}
	dialogs.edit.close();
	done(`${quoted(name)} was saved.`);
});

// --- Revoke, restore, rotate, delete ---

// Does not wait for the list, so the next dialog may open before it is loaded.
function done(text) {
	calm();
	announce(text);
	load();
}

/** Closes the dialog and loads the list, which is stale, because no input can solve the problem. */
function giveUp(dialog, problem) {
	dialog.close();
	complain(problem);
	load();
}

function act(action, token, button) {
	place = { id: token.id, action, index: button.closest("tr").sectionRowIndex };
	if (action === "edit") return askEdit(token);
	if (action === "restore") return restore(token, button);
	return confirm(action, token);
}

const restoring = new Set(); // by id, because the list may be drawn again before the restore ends

async function restore(token, button) {
	if (restoring.has(token.id)) return;
	restoring.add(token.id);
	button.ariaDisabled = "true";
	try {
		await call("PUT", tokenUrl(token), { active: true });
		done(`${quoted(token.name)} is active again.`);
	} catch (error) {
		complain(asProblem(error));
		if (error.status !== 401 && error.code !== "user_changed") load();
	} finally {
		restoring.delete(token.id);
		for (const shown of [button, find(token.id)?.querySelector('[data-action="restore"]')]) if (shown) shown.ariaDisabled = "false";
	}
}

const CONFIRM = {
	revoke: {
		title: "Revoke this token?",
		text: "Whatever uses it is refused from now on.",
		run: (token, form) => call("PUT", tokenUrl(token), { active: false, ...reasonOf(token, form) }),
		past: "revoked",
	},
	rotate: {
		title: "Rotate this token?",
		text: "A new token takes its place: same name, permissions and lifetime, another secret.",
		run: (token, form) => call("POST", tokenUrl(token, "/rotate"), { overlap_seconds: Number(form.overlap.value) }),
		past: "rotated",
	},
	delete: {
		title: "Delete this token?",
		text: "It disappears from this list. This cannot be undone.",
		run: (token) => call("DELETE", tokenUrl(token)),
		past: "deleted",
	},
};

const OVERLAPS = [["0", "Now"], ["3600", "In 1 hour"], ["86400", "In 1 day"], ["604800", "In 7 days"]];

/** The reason to send. An ended token is not active, so only a reason revokes it. */
function reasonOf(token, form) {
	if (form.leaked.checked) return { reason: "compromised" };
	return token.state === "ended" ? { reason: token.kind === "service" ? "admin" : "owner" } : {};
}

function confirm(action, token) {
	const { title, text } = CONFIRM[action];
	const submit = dialogs.confirm.querySelector("[type=submit]");
	$("d-confirm-title").textContent = title;
	$("d-confirm-name").textContent = token.name;
	$("d-confirm-text").textContent = text;
	submit.textContent = `${LABELS[action]} token`;
	nameButton(submit, submit.textContent, token);
	submit.className = `button ${action === "rotate" ? "primary" : "danger"}`;
	$("c-leaked").hidden = action !== "revoke";
	$("c-overlap").hidden = action !== "rotate";
	radios($("c-overlaps"), "overlap", OVERLAPS.filter(([value]) => Number(value) <= settings.policy.longest_overlap_seconds), "0");
	confirmed = { action, token };
	open(dialogs.confirm, dialogs.confirm.querySelector("footer [data-close]"));
}

onSubmit(dialogs.confirm, async (form) => {
	const { action, token } = confirmed;
	const { run, past } = CONFIRM[action];
	let answer;
	try {
		answer = await run(token, form);
	} catch (error) {
		if (![403, 404, 409].includes(error.status)) throw error;
		return giveUp(dialogs.confirm, error);
	}
	dialogs.confirm.close();
	if (action === "rotate") showOnce(answer);
	done(`${quoted(token.name)} was ${past}.`);
});

// --- The token, once ---

function showOnce(made) {
	secret = { text: made.bearer_token, name: made.name, url: null };
	delete made.bearer_token;
	$("once-name").textContent = made.name;
	$("once-token").value = secret.text;
	$("once-said").textContent = "";
	markCopied(false);
	calm();
	place = { id: made.id, action: "edit", index: 0 };
	dialogs.once.showModal();
	fit();
	$("once-copy").focus();
}

/** Makes the field as high as its text in browsers without `field-sizing`. */
function fit() {
	const field = $("once-token");
	field.rows = 1;
	while (field.scrollHeight > field.clientHeight && field.rows < 50) field.rows += 1;
}

function forget() {
	if (secret?.url) URL.revokeObjectURL(secret.url);
	secret = null;
	$("once-token").value = "";
	$("once-name").textContent = "";
	dialogs.once.close();
}

function markCopied(isCopied) {
	const [svg, text] = $("once-copy").children;
	svg.firstElementChild.setAttribute("href", isCopied ? "#i-check" : "#i-copy");
	text.textContent = isCopied ? "Copied" : "Copy";
	nameButton($("once-copy"), text.textContent, secret);
	nameButton($("once-download"), "Download", secret);
}

async function copy() {
	try {
		await navigator.clipboard.writeText(secret.text);
		if (!secret) return;
		markCopied(true);
		$("once-said").textContent = "Copied to the clipboard.";
	} catch {
		// The page lacks the permission, or the connection is not secure.
		$("once-token").focus();
		$("once-token").select();
		$("once-said").textContent = "The browser does not let this page copy. The token is selected: press Ctrl+C (⌘C on a Mac).";
	}
}

/** `NAME-token.txt`, without characters that a file system or a terminal could misinterpret. */
function fileName(name) {
	const safe = name.normalize("NFC").replace(/[^\p{L}\p{M}\p{N}._-]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "");
	return `${[...safe].slice(0, 60).join("") || "access"}-token.txt`;
}

function download() {
	secret.url ??= URL.createObjectURL(new Blob([secret.text], { type: "text/plain" }));
	const link = element("a");
	link.href = secret.url;
	link.download = fileName(secret.name);
	link.click();
	$("once-said").textContent = `Saved as ${link.download}. Move it to a safe place.`;
}

function insist(event) {
	event.preventDefault();
	$("once-said").textContent = "Choose Done once you have stored the token: it will not be shown again.";
}

dialogs.once.addEventListener("submit", (event) => {
	event.preventDefault();
	forget();
});
// A second Escape closes a dialog even if `cancel` is prevented, unless the key itself is.
dialogs.once.addEventListener("keydown", (event) => event.key === "Escape" && insist(event));
dialogs.once.addEventListener("cancel", insist);
dialogs.once.addEventListener("close", () => {
	if (secret) return dialogs.once.showModal();
	document.activeElement.blur();
	returnFocus();
});

// The response to a pending request may contain a token, too.
addEventListener("beforeunload", (event) => (secret || changing > 0) && event.preventDefault());
// The browser's back/forward cache must not keep the token.
addEventListener("pagehide", () => secret && forget());

// --- Start ---

const SETTINGS = new URL("settings.json", import.meta.url).pathname;

async function start() {
	$("boot").hidden = false;
	try {
		settings = await call("GET", SETTINGS);
		const { user, may } = settings;
		$("user").querySelector("strong").textContent = user.name || user.id;
		$("user").hidden = false;
		if (!may.personal && !may.service) return complain(new Problem(403, "You may not manage tokens. Ask an administrator if you need to."), reload);
		$("tabs").hidden = !(may.personal && may.service);
		$("console").hidden = false;
		choose(may.personal ? "personal" : "service");
	} catch (error) {
		const problem = asProblem(error);
		if (problem.code === "page") settings = null;
		complain(problem, resume);
	} finally {
		$("boot").hidden = true;
	}
}

setInterval(keepTimesTrue, 60_000);
addEventListener("visibilitychange", () => {
	if (document.hidden) return;
	keepTimesTrue();
	// For example, after a sign-in in another tab.
	if (again === resume && !document.querySelector("dialog[open]")) resume();
});
for (const kind of ["online", "offline"]) {
	addEventListener(kind, () => {
		$("offline").hidden = navigator.onLine;
		if (navigator.onLine && again === resume) resume();
	});
}
$("offline").hidden = navigator.onLine;
// A page from the back/forward cache may belong to a user who is no longer signed in.
addEventListener("pageshow", (event) => event.persisted && resume());
for (const kind of ["error", "unhandledrejection"]) {
	addEventListener(kind, (event) => {
		const error = event.reason ?? event.error;
		if (error) complain(asProblem(error), reload);
	});
}
addEventListener("resize", fit);
$("tabs").addEventListener("keydown", moveTab);
for (const button of tabButtons) button.addEventListener("click", () => button.dataset.tab !== tab && choose(button.dataset.tab));
for (const id of ["generate", "generate-first"]) {
	$(id).addEventListener("click", () => {
		place = null;
		askGenerate();
	});
}
$("load-more").addEventListener("click", loadMore);
$("again").addEventListener("click", () => choose(tab));
dialogs.generate.addEventListener("input", chooseInGenerate);
dialogs.generate.addEventListener("change", chooseInGenerate);
$("once-copy").addEventListener("click", copy);
$("once-download").addEventListener("click", download);
start();
