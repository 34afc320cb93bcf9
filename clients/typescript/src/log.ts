/** Where the client's own lines and its daemon's log lines go. @module */

/** ADR-006's prefix of adapter lines, which tells them from the daemon's `[MLX]`. */
const PREFIX = "[VLM] ";

/** Gets a line of the log, without a line feed. */
export type LogHook = (line: string) => void;

/** Return a log that passes lines, prefixed, to `hook`; without one, nowhere. */
export function prefixed(hook: LogHook | undefined): LogHook {
  if (hook === undefined) return () => undefined;
  return (line) => {
    // A boundary: a caller's hook must not end what drains the daemon's pipe.
    try {
      hook(line.startsWith(PREFIX) ? line : PREFIX + line);
    } catch (error) {
      process.emitWarning(`The log hook of vlmd threw: ${String(error)}`);
    }
  };
}
