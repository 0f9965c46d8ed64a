// node peer_graphile.mjs fill DSN COUNT | work DSN URL
import { createHmac } from "node:crypto";
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { Pool } from "undici";

const CONCURRENCY = 64;
const KEY = Buffer.alloc(32, "k");
const BODY = JSON.stringify({
  type: "deal.updated",
  timestamp: "2026-03-15T10:30:00.000000Z",
  data: { title: "x".repeat(300) },
});
const logger = new Logger(() => (level, message) => {
  if (level === "error" || level === "warning") console.error(message);
});

async function fill(connectionString, count) {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await utils.migrate();
  await utils.addJobs(Array.from({ length: count }, () => ({ identifier: "deliver", payload: { body: BODY } })));
  await utils.release();
}

async function work(connectionString, url) {
  const { origin, pathname } = new URL(url);
  const receiver = new Pool(origin, { connections: CONCURRENCY });

  async function deliver({ body }, { job }) {
    const id = `evt_${job.id.padStart(32, "0")}`;
    const timestamp = Math.floor(Date.now() / 1000);
    const signature = createHmac("sha256", KEY).update(`${id}.${timestamp}.${body}`).digest("base64");
    const response = await receiver.request({
      method: "POST",
      path: pathname,
      headers: {
        "content-type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": String(timestamp),
        "webhook-signature": `v1,${signature}`,
      },
      body,
    });
    await response.body.dump();
    if (response.statusCode >= 300) throw new Error(`HTTP ${response.statusCode}`);
  }

  const runner = await run({
    connectionString,
    logger,
    taskList: { deliver },
    preset: {
      worker: {
        concurrentJobs: CONCURRENCY,
        // Jobs that one statement fetches, and how long, in ms, completed ones are gathered for the next.
        localQueue: { size: 500 },
        completeJobBatchDelay: 50,
      },
    },
  });
  await runner.promise;
  await receiver.close();
}

const [command, dsn, argument] = process.argv.slice(2);
await (command === "fill" ? fill(dsn, Number(argument)) : work(dsn, argument));
