// A person's decision about a model, signed in the browser with the person's own key.
//
// What is shown comes from MLflow, under the reader's own account: the run's tags name the model, its
// report is shown above the form. What is signed is what `wardround review sign` would sign.
"use strict";

const KEY_BYTES = 32;
const DAY_MS = 24 * 3600 * 1000;
// RFC 8410: what stands before the 32 bytes of an Ed25519 key in PKCS #8
const PKCS8 = Uint8Array.from([0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20]);

const find = (id) => document.getElementById(id);
const hex = (bytes) => Array.from(new Uint8Array(bytes), (b) => b.toString(16).padStart(2, "0")).join("");

// Canonical JSON as Wardround signs it: sorted keys, no spaces. Only texts and whole numbers occur.
function canonical(value) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
  return `{${inner.join(",")}}`;
}

function fail(text) {
  find("problem").textContent = text;
  find("problem").hidden = false;
}

async function loaded(path) {
  const answer = await fetch(`../${path}`, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(`MLflow answered ${answer.status}: may your account read this study?`);
  return answer;
}

async function show() {
  const run = new URLSearchParams(location.search).get("run");
  if (!/^[0-9a-f]{32}$/.test(run || "")) throw new Error("This link names no run; open it from the study's note.");
  const found = await (await loaded(`ajax-api/2.0/mlflow/runs/get?run_id=${run}`)).json();
  const tags = Object.fromEntries(found.run.data.tags.map((tag) => [tag.key, tag.value]));
  if (!tags["wardround.terms"]) throw new Error("This run has no trained model yet.");
  const { days, ...terms } = JSON.parse(tags["wardround.terms"]);
  find("title").textContent = `${terms.study}: decide about the model of round ${terms.round}`;
  find("about").textContent =
    `Run ${terms.run}; model ${terms.model_sha256.slice(0, 16)}. Released: ${tags["wardround.released"]}. ` +
    `Waits for: ${tags["wardround.waits_for"]}. Read the report, then decide below.`;
  find("days").value = days;
  find("days").max = days;
  const report = await (await loaded(`get-artifact?run_uuid=${run}&path=report.html`)).text();
  const about = `${terms.run} ${terms.round} ${terms.model_sha256} ${terms.record_sha256}`;
  if (!report.includes(`<meta name="wardround-model" content="${about}">`)) {
    throw new Error("The report is about another model than the one to decide about; reload this page.");
  }
  find("report").srcdoc = report;
  find("report").hidden = false;
  find("form").hidden = false;
  return terms;
}

async function keyOf(file) {
  if (!file) throw new Error("Choose the file with your key, or make one.");
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes.length !== KEY_BYTES) throw new Error(`Expected a key of ${KEY_BYTES} bytes, got ${bytes.length}.`);
  return crypto.subtle.importKey("pkcs8", Uint8Array.from([...PKCS8, ...bytes]), "Ed25519", false, ["sign"]);
}

async function signed(terms) {
  const word = document.querySelector("input[name=word]:checked").value;
  const reason = find("reason").value.trim();
  if (word !== "approved" && !reason) throw new Error("Give a reason: others have to understand why.");
  const person = find("person").value, now = Date.now();
  const statement = {
    kind: "verdict", word, person, role: find("role").value, terms,
    at_ms: now, expires_ms: now + Number(find("days").value) * DAY_MS, reason,
  };
  const key = await keyOf(find("key").files[0]);
  const bytes = new TextEncoder().encode(canonical(statement));
  return canonical({ statement, signer: person, signature: hex(await crypto.subtle.sign("Ed25519", key, bytes)) });
}

async function record(terms, text) {
  find("submit").textContent = "Recording, which takes some seconds ...";
  find("done").hidden = true;
  find("signed").value = text;
  const answer = await fetch("verdicts", {
    method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ run: terms.run, signed: text }),
  });
  const told = await answer.json().catch(() => ({ recorded: "unknown", text: "" }));
  const isRecorded = told.recorded.startsWith("yes");
  const byHand = !isRecorded && (answer.status === 404 || told.recorded === "unknown");
  find("outcome").textContent =
    isRecorded ? `Recorded${told.recorded.slice(3)}.` : byHand ? "Signed, not recorded yet." : "Not recorded.";
  find("answer").textContent = told.text;
  find("byhand").hidden = find("signed").hidden = !byHand;
  find("done").hidden = false;
  if (isRecorded) find("form").hidden = true;
}

async function makeKey() {
  const person = find("person"), role = find("role").value;
  if (!person.reportValidity() || !role) throw new Error("Enter your name and role first.");
  const pair = await crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"]);
  const secret = new Uint8Array(await crypto.subtle.exportKey("pkcs8", pair.privateKey)).slice(-KEY_BYTES);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([secret], { type: "application/octet-stream" }));
  link.download = `${person.value}.key`;
  link.click();
  const line = `${person.value}: {role: ${role}, key: ${hex(await crypto.subtle.exportKey("raw", pair.publicKey))}}`;
  find("made").textContent =
    `Keep ${person.value}.key where only you can read it, and give the coordinator this line for people.yaml: ${line}`;
  find("made").hidden = false;
}

function tried(action) {
  return async (event) => {
    event.preventDefault();
    find("problem").hidden = true;
    find("submit").disabled = true;
    try { await action(); } catch (error) { fail(error.message); } finally {
      find("submit").disabled = false;
      find("submit").textContent = "Sign and record";
    }
  };
}

show().then((terms) => {
  find("form").addEventListener("submit", tried(async () => record(terms, await signed(terms))));
  find("make").addEventListener("click", tried(makeKey));
}).catch((error) => { find("about").textContent = ""; fail(error.message); });
