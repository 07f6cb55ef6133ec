// Sends each picture as a job of its own, a few at a time, follows its events, and shows what became of it.
"use strict";

const parallel = 3; // jobs of this page that wait or run at the server
const token = new URLSearchParams(location.search).get("token") ?? "";
const byId = (id) => document.getElementById(id);
const entries = [];

function address(path, query = {}) {
  const all = new URLSearchParams(query);
  if (token) all.set("token", token);
  return path + (all.size ? "?" + all : "");
}

function tell(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

async function problem(response) {
  try {
    return (await response.json()).message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function loadModels() {
  const response = await fetch(address("/v1/models"));
  if (!response.ok) return tell(await problem(response));
  const models = await response.json();
  for (const name of new Set(models.map((each) => each.model))) {
    const isDefault = models.some((each) => each.model === name && each.default);
    byId("model").add(new Option(name, name, isDefault, isDefault));
  }
}

function add(files) {
  for (const file of files) {
    if (file.type && !file.type.startsWith("image/")) continue;
    const node = byId("entry").content.firstElementChild.cloneNode(true);
    const entry = { file, node, state: "queued", abort: new AbortController() };
    node.querySelector(".name").textContent = file.webkitRelativePath || file.name;
    node.querySelector(".remove").addEventListener("click", () => remove(entry));
    node.querySelector(".view").addEventListener("click", () => compare(entry));
    byId("list").append(node);
    entries.push(entry);
    show(entry, "waits");
  }
  refresh();
  next();
}

function show(entry, text) {
  entry.node.className = entry.state;
  entry.node.querySelector(".state").textContent = text;
}

function refresh() {
  const count = (state) => entries.filter((each) => each.state === state).length;
  byId("summary").textContent = entries.length
    ? `${count("done")} of ${entries.length} done` + (count("failed") ? `, ${count("failed")} failed` : "")
    : "";
  byId("all").disabled = !count("done");
  byId("clear").disabled = !entries.length;
}

function next() {
  const running = entries.filter((each) => each.state === "sent").length;
  for (const entry of entries.filter((each) => each.state === "queued").slice(0, parallel - running)) {
    entry.state = "sent";
    send(entry).catch((error) => entry.abort.signal.aborted || fail(entry, error.message)).finally(() => {
      refresh();
      next();
    });
  }
}

async function send(entry) {
  await ready; // the list of networks
  const query = { model: byId("model").value, format: byId("format").value };
  if (byId("scale").value) query.scale = byId("scale").value;
  const body = new FormData();
  body.append("file", entry.file);
  show(entry, "is sent");
  let response;
  for (;;) {
    response = await fetch(address("/v1/jobs", query), { method: "POST", body, signal: entry.abort.signal });
    if (response.status !== 429) break;
    show(entry, "waits for room");
    await new Promise((done) => setTimeout(done, 1500));
  }
  if (!response.ok) return fail(entry, await problem(response));
  entry.job = (await response.json()).id;
  const facts = await follow(entry);
  if (facts.state !== "done") return fail(entry, facts.error ?? facts.state);
  entry.state = "done";
  entry.node.querySelector("progress").value = 1;
  show(entry, `${facts.width} × ${facts.height}, ${facts.seconds.toFixed(1)} s`);
  entry.node.title = facts.notes.join("\n");
  const link = entry.node.querySelector(".download");
  link.href = address(`/v1/jobs/${entry.job}/result`);
  link.hidden = entry.node.querySelector(".view").hidden = false;
  entry.node.querySelector(".remove").textContent = "Remove";
}

function follow(entry) {
  return new Promise((done, failed) => {
    const events = new EventSource(address(`/v1/jobs/${entry.job}/events`));
    entry.abort.signal.addEventListener("abort", () => events.close());
    events.onmessage = (event) => {
      const facts = JSON.parse(event.data);
      entry.node.querySelector("progress").value = facts.progress;
      show(entry, facts.state === "running" ? `${Math.round(100 * facts.progress)} %` : facts.state);
      if (!["waiting", "running"].includes(facts.state)) {
        events.close();
        done(facts);
      }
    };
    events.onerror = () => {
      events.close();
      failed(new Error("the connection to the server was lost"));
    };
  });
}

function fail(entry, text) {
  entry.state = "failed";
  show(entry, text);
  entry.node.querySelector(".remove").textContent = "Remove";
}

function remove(entry) {
  entry.abort.abort();
  if (entry.job) fetch(address(`/v1/jobs/${entry.job}`), { method: "DELETE" });
  entries.splice(entries.indexOf(entry), 1);
  entry.node.remove();
  refresh();
  next();
}

function compare(entry) {
  const frame = entry.node.querySelector(".frame");
  const button = entry.node.querySelector(".view");
  frame.hidden = !frame.hidden;
  button.setAttribute("aria-expanded", String(!frame.hidden));
  if (frame.firstChild) return;
  frame.append(dividedPair({
    before: URL.createObjectURL(entry.file), after: entry.node.querySelector(".download").href,
    beforeName: "before", afterName: "after", caption: entry.file.name,
  }));
}

async function filesOf(items) {
  const files = [];
  const walk = async (each) => {
    if (each.isFile) files.push(await new Promise((done, failed) => each.file(done, failed)));
    else {
      const reader = each.createReader();
      for (;;) { // a reader gives a folder's entries in pieces
        const some = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (!some.length) break;
        for (const one of some) await walk(one);
      }
    }
  };
  for (const each of [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean)) await walk(each);
  return files;
}

const drop = byId("drop");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(await filesOf(event.dataTransfer.items));
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
for (const id of ["files", "folder"]) {
  byId(id).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
}
byId("all").addEventListener("click", () => {
  const query = new URLSearchParams(entries.filter((each) => each.state === "done").map((each) => ["job", each.job]));
  const link = document.createElement("a");
  link.href = address("/v1/archive", query);
  link.click();
});
byId("clear").addEventListener("click", () => [...entries].forEach(remove));
const ready = loadModels();
