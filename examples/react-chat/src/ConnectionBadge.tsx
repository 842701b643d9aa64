import type { Connection } from './useChatUpdates';

const TEXTS: Record<Connection['status'], [label: string, explanation: string]> = {
  connecting: ['Connecting…', 'Not connected to the gateway yet'],
  'must-refetch': ['Must refetch', 'Connected; what happened before has to be fetched'],
  live: ['Live', 'Every update arrives as it happens'],
  reconnecting: ['Reconnecting…', 'The connection is lost; the client tries again by itself'],
  recovered: ['Recovered', 'Live again; what was missed has been delivered, once'],
  refused: ['Refused', 'The gateway did not accept the token'],
};

export function ConnectionBadge({ connection, signIn }: { connection: Connection; signIn: () => void }) {
  const [label, explanation] = TEXTS[connection.status];
  return (
    <div className="connection">
      <span className="badge" data-status={connection.status} role="status" title={explanation}>
        {label}
        {connection.reason && `: ${connection.reason}`}
      </span>
      {connection.status === 'refused' && <button onClick={signIn}>Sign in again</button>}
    </div>
  );
}
