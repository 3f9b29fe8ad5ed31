#!/usr/bin/env node
// Asks portguard's sidecar to restart a service and follows the events to the end of the run.
//   node node-restart.mjs SERVICE        exits as `portguard restart` would
// No dependency: Node's own http speaks to a Unix socket.

import http from "node:http";

const socketPath = process.env.PORTGUARD_SOCKET ?? "/run/portguard/portguard.sock";
const service = process.argv[2];
if (!service) {
  console.error("usage: node node-restart.mjs SERVICE");
  process.exit(2);
}

/** One request; resolves with the response as soon as its head is there. */
function request(method, path, headers = {}) {
  return new Promise((resolve, reject) => {
    http.request({ socketPath, method, path, headers }, resolve).on("error", reject).end();
  });
}

async function text(response) {
  response.setEncoding("utf8");
  let all = "";
  for await (const piece of response) all += piece;
  return all;
}

// The stream first: then no event of the run can be missed.
const name = encodeURIComponent(service);
const stream = await request("GET", `/v1/events?service=${name}`, { accept: "application/x-ndjson" });
if (stream.statusCode !== 200) {
  console.error(`no events of ${service}: ${stream.statusCode} ${await text(stream)}`);
  process.exit(3);
}
const asked = await request("POST", `/v1/services/${name}/restart`);
const answer = JSON.parse(await text(asked));
if (asked.statusCode !== 202) {
  console.error(`refused: ${answer.message}`);
  process.exit(asked.statusCode === 403 ? 6 : 3);
}
console.log(`run ${answer.run}${answer.joined ? " (was under way already)" : ""}`);

stream.setEncoding("utf8");
let rest = "";
for await (const piece of stream) {
  const lines = (rest + piece).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    const event = JSON.parse(line);
    // A reader that fell behind may have missed the end: the run itself says how it is.
    if (event.type === "lagged") {
      const run = JSON.parse(await text(await request("GET", `/v1/runs/${answer.run}`)));
      if (run.state === "finished") finish(run);
      continue;
    }
    if (event.run !== answer.run) continue;
    const { type, step, signal, pid } = event;
    console.log([event.time, type, step, signal, pid && `pid ${pid}`].filter(Boolean).join("  "));
    if (type === "run_finished") finish(event);
  }
}
console.error("the sidecar ended the stream");
process.exit(3);

function finish({ outcome, exit_code, detail }) {
  console.log(detail ? `${outcome}: ${detail}` : outcome);
  process.exit(exit_code);
}
