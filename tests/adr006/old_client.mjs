// ADR-006's adapter as it was shipped, in what it sends, how it reads, and how it starts and ends its bridge. What it
// does wrong is on purpose: the bridge has to work with it unmodified.
//
// One JSON command per line on stdin, one JSON outcome per line on stdout:
//   {"images": [...], "params": {...}}   describeImages → {"results": [...], "callbacks": [...]} or {"error": "..."}
//   {"raw": "..."}                       a line sent as it is, answered in the same way
//   {"bridge": true}                     → {"pid": of its bridge, or null}
//   {"disconnect": true}                 its connection ends, its bridge does not → {}
// At the end of stdin it exits, as a host app does.

import { spawn } from 'node:child_process';
import { existsSync, unlinkSync } from 'node:fs';
import { createConnection } from 'node:net';
import { createInterface } from 'node:readline';

const SOCKET = process.env.ESCRIBANO_MLX_SOCKET_PATH ?? '/tmp/escribano-mlx.sock';
const PYTHON = process.env.ESCRIBANO_PYTHON_PATH ?? 'python3';
const BATCH_SIZE = Number(process.env.ESCRIBANO_VLM_BATCH_SIZE ?? 4);
const MAX_TOKENS = Number(process.env.ESCRIBANO_VLM_MAX_TOKENS ?? 2000);
const [SCRIPT = 'scripts/mlx_bridge.py', START_TIMEOUT_MS = '60000', SOCKET_TIMEOUT_MS = '60000'] = process.argv.slice(2);

let bridge = null;
let socket = null;
let nextId = 1;

process.on('exit', () => {
  socket?.destroy();
  bridge?.kill();
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));

function startBridge() {
  if (existsSync(SOCKET)) unlinkSync(SOCKET);
  return new Promise((resolve, reject) => {
    const child = spawn(PYTHON, [SCRIPT], { stdio: ['ignore', 'pipe', 'pipe'] });
    bridge = child;
    const timer = setTimeout(() => reject(new Error('Timeout waiting for MLX bridge')), Number(START_TIMEOUT_MS));
    let output = '';
    child.stdout.on('data', (data) => {
      output += data.toString('utf8');
      const lines = output.split('\n');
      output = lines.pop();
      for (const line of lines) {
        let message;
        try {
          message = JSON.parse(line);
        } catch {
          continue;
        }
        if (message.status === 'ready') resolve();
        if (message.status === 'fatal') reject(new Error(`MLX bridge failed: ${message.error}`));
      }
    });
    child.stderr.on('data', (data) => process.stderr.write(data));
    child.on('error', (error) => reject(new Error(`Failed to start MLX bridge: ${error.message}`)));
    child.on('exit', (code, signal) => {
      clearTimeout(timer);
      if (bridge === child) bridge = null;
      reject(new Error(`MLX bridge exited with ${code ?? signal}`));
    });
  });
}

function connect() {
  return new Promise((resolve, reject) => {
    const connection = createConnection(SOCKET);
    connection.once('connect', () => {
      socket = connection;
      resolve();
    });
    connection.once('error', (error) => reject(new Error(`Failed to connect to MLX bridge: ${error.message}`)));
    connection.once('close', () => {
      if (socket === connection) socket = null;
    });
  });
}

function ask(line) {
  const connection = socket;
  return new Promise((resolve, reject) => {
    const results = [];
    const callbacks = []; // one for each batch, with the milliseconds since the request
    const start = Date.now();
    let buffer = '';
    const end = (settle, value) => {
      for (const [event, listener] of Object.entries(listeners)) connection.off(event, listener);
      connection.setTimeout(0);
      settle(value);
    };
    const listeners = {
      data(chunk) {
        buffer += chunk.toString('utf8'); // each chunk by itself
        const lines = buffer.split('\n');
        buffer = lines.pop();
        for (const text of lines) {
          if (!text.trim()) continue;
          let message;
          try {
            message = JSON.parse(text);
          } catch {
            return end(reject, new Error('Invalid response from MLX bridge'));
          }
          // The id is not looked at: every line is the reply.
          if (message.error) return end(reject, new Error(message.error));
          if (message.done) return end(resolve, { results, callbacks });
          results.push(...(message.results ?? []));
          callbacks.push({ frames: message.results.length, ...message.progress, ms: Date.now() - start });
        }
      },
      close: () => end(reject, new Error('MLX bridge closed the connection')),
      error: (error) => end(reject, new Error(`MLX bridge connection failed: ${error.message}`)),
      timeout: () => {
        connection.destroy();
        end(reject, new Error('MLX bridge timed out'));
      },
    };
    for (const [event, listener] of Object.entries(listeners)) connection.on(event, listener);
    connection.setTimeout(Number(SOCKET_TIMEOUT_MS));
    connection.write(`${line}\n`);
  });
}

async function run(command) {
  if (command.bridge) return { pid: bridge?.pid ?? null };
  if (command.disconnect) {
    socket?.destroy();
    socket = null;
    return {};
  }
  if (bridge === null) await startBridge();
  if (socket === null) await connect();
  if (command.raw !== undefined) return ask(command.raw);
  const params = { images: command.images, batchSize: BATCH_SIZE, maxTokens: MAX_TOKENS, ...command.params };
  return ask(JSON.stringify({ id: nextId++, method: 'describe_images', params }));
}

for await (const line of createInterface({ input: process.stdin })) {
  const outcome = await run(JSON.parse(line)).catch((error) => ({ error: error.message }));
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}
process.exit(0);
