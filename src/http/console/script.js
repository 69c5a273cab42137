// The settings page: lists tokens, and does with them what their state allows. Everything that others wrote is put in as text.

const API = document.querySelector('meta[name="patkit-api"]').content.replace(/\/+$/, "");
const SIGN_IN = document.querySelector('meta[name="patkit-sign-in"]').content;
const PAGE = 50;
const MOST = 200; // of one page of the API
const MOST_DAYS = 365;
const SOON = 7; // days before its expiry from which on a token stands out
const SHOWN_SCOPES = 6;
const FINAL = ["compromised", "reuse", "rotated"]; // reasons that no restoring undoes

const $ = (id) => document.getElementById(id);
const dialogs = { generate: $("d-generate"), edit: $("d-edit"), confirm: $("d-confirm"), once: $("d-once") };

let settings = null;
let tab = "personal";
let tokens = [];
let cursor = null;
let turn = 0; // what an older turn asked for comes too late
let place = null; // {id, action}: where the focus belongs once a dialog is gone
let confirmed = null; // {action, token}: what the confirmation is about
let edited = null;
let secret = null; // {text, name, url}: the token that is shown, and nowhere else

// --- The API ---

class Problem extends Error {
	constructor(status, text, field, code) {
		super(text);
		Object.assign(this, { status, field, code });
	}
}

async function call(method, url, body) {
	const changes = method !== "GET";
	let answer;
	try {
		answer = await fetch(url, {
			method,
			credentials: "same-origin",
			cache: "no-store",
			redirect: "manual", // to a page of signing in, say
			headers: { Accept: "application/json", ...(body && { "Content-Type": "application/json" }) },
			body: body && JSON.stringify(body),
			signal: AbortSignal.timeout(30_000),
		});
	} catch {
		const then = changes ? "It may have done it all the same: look at the list before you try again." : "Please try again.";
		throw new Problem(0, `The server did not answer. ${then}`);
	}
	if (answer.type === "opaqueredirect") throw new Problem(401, "You are signed out.");
	const said = answer.status === 204 ? null : await answer.json().catch(() => undefined);
	if (answer.ok && said !== undefined) return said;
	if (answer.status === 401) throw new Problem(401, "You are signed out.");
	const text = said?.detail || said?.title || `The server answered ${answer.status || "with something else than JSON"}.`;
	const sentence = text.replace(/^./u, (first) => first.toUpperCase()).replace(/[^.!?]$/u, "$&.");
	const again = answer.status === 503 && !/try again/.test(text) ? " Please try again in a moment." : "";
	throw new Problem(answer.status, sentence + again, said?.errors?.[0]?.pointer.slice(1), said?.code);
}

const tokenUrl = (token, rest = "") => `${API}/user-tokens/${encodeURIComponent(token.id)}${rest}`;

// --- Text ---

const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });
const minutes = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });
const relation = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const DAY = 86_400;

function relative(date) {
	const seconds = (date - Date.now()) / 1000;
	const size = Math.abs(seconds);
	if (size < 60) return seconds < 0 ? "just now" : "in less than a minute";
	if (size < 3600) return relation.format(Math.round(seconds / 60), "minute");
	if (size < DAY) return relation.format(Math.round(seconds / 3600), "hour");
	if (size < 100 * DAY) return relation.format(Math.round(seconds / DAY), "day");
	if (size < 700 * DAY) return relation.format(Math.round(seconds / DAY / 30.44), "month");
	return relation.format(Math.round(seconds / DAY / 365.25), "year");
}

// For live regions and labels, where there is no element around a name to keep its direction to itself.
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

/** A time as text, with the exact one behind it. */
function stamp(text, className, format) {
	const date = new Date(text);
	const time = element("time", className, format(date));
	time.dateTime = text;
	time.title = exact.format(date);
	return time;
}

const since = (text, className = "") => stamp(text, `since ${className}`, relative);

function keepTimesTrue() {
	for (const time of document.querySelectorAll("time.since")) {
		time.textContent = relative(new Date(time.dateTime));
	}
}

// --- What happened ---

let fading;
function announce(text) {
	clearTimeout(fading);
	$("toast").textContent = text;
	fading = setTimeout(() => ($("toast").textContent = ""), 8000);
}

function explain(region, problem) {
	region.replaceChildren(problem.message);
	const helps = problem.status === 401 || problem.code === "recent_sign_in_required";
	if (!helps || !SIGN_IN) return;
	const link = element("a", "", "Sign in");
	link.href = SIGN_IN;
	region.append(" ", link);
}

/** Tells of a problem on the page itself. Whoever is signed out no longer sees the tokens. */
function complain(problem) {
	explain($("alert"), problem);
	if (problem.status !== 401) return;
	turn += 1;
	tokens = [];
	$("rows").replaceChildren();
	$("console").hidden = true;
	$("user").hidden = true;
	for (const dialog of Object.values(dialogs)) if (dialog !== dialogs.once) dialog.close();
	if (!secret) ($("alert").querySelector("a") ?? $("alert")).focus();
}

const asProblem = (error) => (error instanceof Problem ? error : new Problem(0, `This page failed: ${error}`));

// --- The list ---

function show(part) {
	for (const id of ["list", "loading", "empty", "broken"]) $(id).hidden = id !== part;
}

async function fetchPage(limit, from) {
	const query = new URLSearchParams({ limit });
	if (from) query.set("cursor", from);
	return call("GET", `${API}/user-tokens${tab === "service" ? "/service" : ""}?${query}`);
}

/** Reads the list anew, as far down as it is shown. */
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
		render();
	} catch (error) {
		if (mine !== turn) return;
		complain(asProblem(error));
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

/** To the action where the reader was, or to what is nearest to it now. */
function returnFocus() {
	const { activeElement: at, body } = document;
	// In a dialog that has just been closed, it is as good as nowhere.
	if (!place || (at && at !== body && at.checkVisibility())) return;
	const rows = $("rows").rows;
	const near = find(place.id) ?? rows[Math.min(place.index ?? 0, rows.length - 1)];
	const target = near?.querySelector(`[data-action="${place.action}"]`) ?? near?.querySelector("button.act") ?? $("generate");
	target.focus();
}

function actionsOf(token) {
	const lasting = token.successor || FINAL.includes(token.revoked?.reason);
	const all = {
		active: [!token.successor && "rotate", "edit", "revoke"],
		revoked: [!lasting && "restore", "edit", "delete"],
		expired: ["edit", "delete"],
	};
	return (all[token.state] ?? ["edit"]).filter(Boolean);
}

const LABELS = { rotate: "Rotate", edit: "Edit", revoke: "Revoke", restore: "Restore", delete: "Delete" };
const STATES = { active: "Active", revoked: "Revoked", expired: "Expired" };
const REASONS = {
	owner: "by its owner",
	admin: "by an administrator",
	system: "by the system",
	offboarding: "with all tokens of its owner",
	idle: "because it was not used for long",
	rotated: "when it was rotated",
	reuse: "because a rotated token was used again",
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
		if (by.owner && by.owner !== token.user.id) part(".revoked").append(", ", element("bdi", "", by.owner));
		if (by.token) part(".revoked").append(", through a token");
	} else if (token.successor) {
		part(".revoked").append("Rotated: another token took its place");
	}
	part(".chips").append(...chips(token.scopes));
	if (token.allowed_networks?.length) part(".networks").textContent = `Only from ${token.allowed_networks.join(", ")}`;
	part("td.c-owner").append(...owner(token.user));
	part(".c-expires").append(...expiry(token));
	part(".c-used").append(...used(token));
	part(".c-created").append(stamp(token.created, "", (date) => dates.format(date)));
	part("td.c-actions").append(
		...actionsOf(token).map((action) => {
			const button = element("button", `act${action === "revoke" || action === "delete" ? " takes" : ""}`);
			button.type = "button";
			button.dataset.action = action;
			button.ariaLabel = `${LABELS[action]} ${quoted(token.name)}`;
			button.append(icon(action), LABELS[action]);
			button.addEventListener("click", () => act(action, token, button));
			return button;
		}),
	);
	return made;
}

function chips(scopes) {
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
	const soon = token.state === "active" && date - Date.now() < SOON * DAY * 1000;
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
	$("alert").replaceChildren();
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

/** Says it beside the field that it is about, if there is one, and puts the focus there. */
function blame(dialog, problem) {
	const name = /^[a-z_]+/.exec(problem.field ?? "")?.[0];
	const field = name && dialog.querySelector(`.field[data-field="${name}"]:not([hidden])`);
	if (!field) return explain(dialog.querySelector(".problem"), problem);
	if (field.tagName === "DETAILS") field.open = true;
	field.querySelector(".error").textContent = problem.message;
	const visible = [...field.querySelectorAll("input, textarea")].filter((input) => input.checkVisibility());
	const input = visible.find((input) => !["radio", "checkbox"].includes(input.type)) ?? visible.find((input) => input.checked);
	input?.setAttribute("aria-invalid", "true");
	input?.focus();
}

/** A form that is sent once at a time. `task` closes the dialog, or fails with what stays to be said in it. */
function onSubmit(dialog, task) {
	dialog.addEventListener("submit", async (event) => {
		event.preventDefault();
		if (isBusy(dialog)) return;
		const footer = dialog.querySelector("footer");
		clear(dialog);
		footer.ariaBusy = "true";
		try {
			await task(event.target.elements);
		} catch (error) {
			const problem = asProblem(error);
			if (problem.status === 401) complain(problem);
			else blame(dialog, problem);
		} finally {
			footer.ariaBusy = "false";
		}
	});
}

for (const dialog of [dialogs.generate, dialogs.edit, dialogs.confirm]) {
	// Not while the server is at work: what it answers would have no place.
	const close = (event) => {
		event.preventDefault();
		if (!isBusy(dialog)) dialog.close();
	};
	dialog.addEventListener("cancel", close);
	for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", close);
	dialog.addEventListener("close", () => {
		if (!document.querySelector("dialog[open]")) returnFocus();
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
	const { policy, scopes = [], service_users: users = [], may } = settings;
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
	$("g-scim").hidden = !may.scim;
	$("g-scopes").replaceChildren(
		...scopes.map((scope) => {
			const label = element("label");
			const input = element("input");
			Object.assign(input, { type: "checkbox", name: "scopes", value: scope });
			label.append(input, element("span", "", scope));
			return label;
		}),
	);
	$("g-scopes").hidden = scopes.length === 0;
	document.querySelector('label[for="g-more"]').textContent = scopes.length ? "Other permissions" : "Permissions";
	dialogs.generate.querySelector("details").open = false;
	open(dialogs.generate, isService ? $("g-user") : $("g-name"));
	chooseInGenerate();
}

/** What depends on what is chosen. */
function chooseInGenerate() {
	const { lifetime, scope, days } = dialogs.generate.querySelector("form").elements;
	const isNever = lifetime.value === "never";
	const isCustom = lifetime.value === "custom";
	$("g-custom").hidden = !isCustom;
	$("g-only").hidden = scope.value !== "only";
	const number = isCustom ? days.valueAsNumber : Number(lifetime.value);
	const isGood = Number.isInteger(number) && number >= 1 && number <= Number(days.max);
	const until = isGood ? `Works until ${minutes.format(Date.now() + number * DAY * 1000)}.` : "";
	const hint = isNever ? "" : until || `From 1 to ${days.max} days.`;
	if ($("g-days-hint").textContent !== hint) $("g-days-hint").textContent = hint;
	if (isNever === ($("g-never").childElementCount > 0)) return;
	$("g-never").replaceChildren();
	if (!isNever) return;
	const text = "It works until somebody revokes it. If it leaks and nobody notices, it stays open: a date is safer.";
	$("g-never").append(icon("warning"), element("span", "", text));
}

function checkedName(text) {
	const name = text.trim();
	if (!name) throw new Problem(422, "Give it a name.", "name");
	if ([...name].length > 255) throw new Problem(422, "A name has at most 255 characters.", "name");
	return name;
}

/** A problem that the form can put right, or not: the list behind it may be older than what the server knows. */
function refreshed(problem) {
	if (![401, 422].includes(problem.status)) load();
	return problem;
}

onSubmit(dialogs.generate, async (form) => {
	const body = {};
	if (tab === "service") {
		body.user_id = form.user_id.value.trim();
		if (!body.user_id) throw new Problem(422, "Say which service user the token is for.", "user_id");
	}
	body.name = checkedName(form.name.value);
	if (form.description.value.trim()) body.description = form.description.value.trim();
	const lifetime = form.lifetime.value;
	body.expires_in_days = lifetime === "never" ? null : lifetime === "custom" ? form.days.valueAsNumber : Number(lifetime);
	if (lifetime === "custom" && !(Number.isInteger(body.expires_in_days) && form.days.validity.valid)) {
		throw new Problem(422, `Whole days, from 1 to ${form.days.max}.`, "expires_in_days");
	}
	if (form.scope.value === "scim") body.scim_endpoints_only = true;
	if (form.scope.value === "only") {
		const ticked = [...$("g-scopes").querySelectorAll(":checked")].map((input) => input.value);
		body.scopes = [...new Set([...ticked, ...lines(form.more.value)])];
		if (body.scopes.length === 0) throw new Problem(422, "Choose at least one permission.", "scopes");
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

// Nobody waits for the list: the next dialog may be open before it is there.
function done(text) {
	$("alert").replaceChildren();
	announce(text);
	load();
}

/** Nothing that could be put right in the dialog: the list is older than what the server knows. */
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

async function restore(token, button) {
	if (button.ariaDisabled === "true") return;
	button.ariaDisabled = "true";
	try {
		await call("PUT", tokenUrl(token), { active: true });
		done(`${quoted(token.name)} is active again.`);
	} catch (error) {
		complain(asProblem(error));
		if (error.status !== 401) load();
	} finally {
		button.ariaDisabled = "false";
	}
}

const CONFIRM = {
	revoke: {
		title: "Revoke this token?",
		text: "Whatever uses it is refused from now on.",
		run: (token, form) => call("PUT", tokenUrl(token), { active: false, ...(form.leaked.checked && { reason: "compromised" }) }),
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

function confirm(action, token) {
	const { title, text } = CONFIRM[action];
	const submit = dialogs.confirm.querySelector("[type=submit]");
	$("d-confirm-title").textContent = title;
	$("d-confirm-name").textContent = token.name;
	$("d-confirm-text").textContent = text;
	submit.textContent = `${LABELS[action]} token`;
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
	$("alert").replaceChildren();
	place = { id: made.id, action: "edit", index: 0 };
	dialogs.once.showModal();
	$("once-copy").focus();
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
}

async function copy() {
	try {
		await navigator.clipboard.writeText(secret.text);
		markCopied(true);
		$("once-said").textContent = "Copied to the clipboard.";
	} catch {
		// No permission, or no secure connection.
		$("once-token").focus();
		$("once-token").select();
		$("once-said").textContent = "The browser does not let this page copy. The token is selected: press Ctrl+C (⌘C on a Mac).";
	}
}

/** `NAME-token.txt`, without anything that a file system or a terminal could misunderstand. */
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
// A second Escape closes a dialog whatever is done to `cancel`, unless the key itself is taken.
dialogs.once.addEventListener("keydown", (event) => event.key === "Escape" && insist(event));
dialogs.once.addEventListener("cancel", insist);
dialogs.once.addEventListener("close", () => {
	if (secret) return dialogs.once.showModal();
	document.activeElement.blur();
	returnFocus();
});

addEventListener("beforeunload", (event) => secret && event.preventDefault());
// A page that the browser keeps for "back" must not keep the token.
addEventListener("pagehide", () => secret && forget());

// --- Start ---

async function start() {
	try {
		settings = await call("GET", new URL("settings.json", import.meta.url).pathname);
	} catch (error) {
		return complain(asProblem(error));
	}
	const { user, may } = settings;
	$("user").querySelector("strong").textContent = user.name || user.id;
	$("user").hidden = false;
	if (!may.personal && !may.service) return complain(new Problem(403, "You may not manage tokens."));
	$("tabs").hidden = !(may.personal && may.service);
	$("console").hidden = false;
	setInterval(keepTimesTrue, 60_000);
	await choose(may.personal ? "personal" : "service");
}

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
